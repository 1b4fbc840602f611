"""An app with singleton tasks that hold their keys for as long as they are told; notes what is skipped."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from celery import Celery, Task

from celery_highlander import Highlander, run_skipped, singleton_task

app = Celery("shop", set_as_current=True)
app.conf.update(json.loads(os.environ.get("HIGHLANDER_ARENA_CONF", "{}")))
app.conf.broker_connection_retry_on_startup = True
Highlander(app)

SKIPPED = Path(os.environ.get("HIGHLANDER_ARENA_JOURNALS", ".")) / "skipped"


@run_skipped.connect(weak=False)
def note_skip(sender: Task, task_id: str, key: str, **_: object) -> None:
    """Write a line that is complete or not there."""
    with SKIPPED.open("a") as file:
        file.write(json.dumps([sender.name, task_id, key, os.getpid()]) + "\n")


@singleton_task(name="hold", unique_on="account")
def hold(account: str, seconds: float) -> str:
    """Hold the key of `account`."""
    time.sleep(seconds)
    return account


@singleton_task(name="hold_late", unique_on="account", acks_late=True, reject_on_worker_lost=True)
def hold_late(account: str, seconds: float) -> str:
    """As `hold`; its message goes back when its process dies by itself."""
    return hold.run(account, seconds)  # type: ignore[no-any-return]  # a proxy of a task


@singleton_task(name="alone", unique_on="account", scope="queue")
def alone(account: str) -> str:
    """At most one message of it waits."""
    return account
