"""The measured task, guarded by nobody, by one of the peers or by us: a side is chosen by the environment.

Each side is set up as its documentation recommends. Every call has a key of its own, so nobody ever waits for a lock.
"""

from __future__ import annotations

import json
import os
from typing import Any

from celery import Celery

import celery_highlander
from celery_highlander.clock import boot_time

PLAIN, SINGLETON, ONCE = "plain", "celery-singleton", "celery-once"
HEIMDALL, HEIMDALL_AT_ONCE = "celery-heimdall", "celery-heimdall, not blocking"
OURS_RUN, OURS_BOTH = "singleton_task, run", "singleton_task, both"
PEERS = (SINGLETON, ONCE, HEIMDALL, HEIMDALL_AT_ONCE)
OURS = (OURS_RUN, OURS_BOTH) if hasattr(celery_highlander, "singleton_task") else ()
SIDES = (PLAIN, *PEERS, *OURS)
SLOW = (HEIMDALL,)
"""Whose task takes about a second whatever it does, so that only few of it are measured."""

SIDE_VARIABLE = "HIGHLANDER_BENCHMARK_SIDE"
HOUR = 3600

_side = os.environ.get(SIDE_VARIABLE, PLAIN)
app = Celery("shop")
app.conf.update(json.loads(os.environ.get("HIGHLANDER_ARENA_CONF", "{}")))


def _decorator() -> Any:  # Celery's own decorator, or ours
    match _side:
        case "celery-singleton":
            from celery_singleton import Singleton  # noqa: PLC0415 - each side loads what it uses, and nothing more

            return app.task(base=Singleton)
        case "celery-once":
            from celery_once import QueueOnce  # noqa: PLC0415 - as above

            settings = {"url": app.conf.broker_url, "default_timeout": HOUR}
            app.conf.ONCE = {"backend": "celery_once.backends.Redis", "settings": settings}
            return app.task(base=QueueOnce)
        case "celery-heimdall" | "celery-heimdall, not blocking":
            from celery_heimdall import HeimdallTask  # noqa: PLC0415 - as above

            blocking = {"unique_lock_blocking": False} if _side == HEIMDALL_AT_ONCE else {}
            return app.task(base=HeimdallTask, heimdall={"unique": True, "unique_timeout": HOUR, **blocking})
        case "singleton_task, run" | "singleton_task, both":
            from celery_highlander import Highlander, singleton_task  # noqa: PLC0415 - as above

            Highlander(app)
            return singleton_task(unique_on=["number"], **({"scope": "both"} if _side == OURS_BOTH else {}))
        case _:
            return app.task


@_decorator()
def work(number: int) -> float:  # noqa: ARG001 - what the key is made of
    """Return the instant of the run's first instruction, on the boot-time clock that all processes share."""
    return boot_time()
