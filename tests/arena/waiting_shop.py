"""The app with singleton tasks of which one message at most waits: workers run it, and tests call its tasks."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import Celery, Task

from celery_highlander import Highlander, SingletonTask
from celery_highlander.tasks.options import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST = 60.0


class CarelessTask(SingletonTask):
    """Overrides Celery's handlers, and forgets to call those of its base."""

    abstract = True

    def on_success(self, *_: Any) -> None:
        """Do nothing."""

    def on_failure(self, *_: Any) -> None:
        """Do nothing."""

    def after_return(self, *_: Any) -> None:
        """Do nothing."""


ALL: dict[str, Any] = {"scope": "both", "unique_on": ["key", "value"], "retry_delay": 0.2}
TASKS: dict[str, dict[str, Any]] = {
    "both": ALL,
    "both_late": {**ALL, "acks_late": True, "reject_on_worker_lost": True},
    "both_careless": {**ALL, "base": CarelessTask},
    "refuses": {**ALL, "on_conflict": "raise"},
    "waits_in_line": {**ALL, "on_conflict": "retry"},
    "queue": {"scope": "queue", "unique_on": "key", "retry_delay": 0.2},
    "retried": {**ALL, "autoretry_for": (LookupError,), "retry_backoff": False, "default_retry_delay": 0.1},
}
"""The tasks that are called with a key, and how they are declared."""


def released(key: str, directory: str) -> Path:
    """The file that ends the runs of a key that hold on."""
    return Path(directory, f"released-{key}")


def _work(self: Task, key: str, how: str) -> dict[str, Any]:
    again = bool(self.request.retries)
    end = time.monotonic() + LONGEST
    while how == "hold" and not released(key, os.environ["HIGHLANDER_ARENA_JOURNALS"]).exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    match how:
        case "raise":
            raise ValueError("as asked")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "retry" if not again:
            raise self.retry(countdown=0.1)
        case "autoretry" if not again:
            raise LookupError("as asked")
    return {"task_id": self.request.id, "retries": self.request.retries}


def _declare(app: Celery, name: str, declared: Mapping[str, Any]) -> None:
    ours = {option: value for option, value in declared.items() if option in OPTIONS}
    others = {option: value for option, value in declared.items() if option not in OPTIONS}

    @app.task(name=name, shared=False, bind=True, singleton=ours, **{"base": SingletonTask, **others})
    def task(self: Task, key: str, how: str = "return", value: object = None) -> dict[str, Any]:  # noqa: ARG001
        return _work(self, key, how)


def make_app(conf: Mapping[str, Any]) -> Celery:
    """Make the app, for this process alone."""
    made = Celery("waiting", set_as_current=False)
    made.conf.update(conf)
    made.conf.broker_connection_retry_on_startup = True
    Highlander(made)
    for name, declared in TASKS.items():
        _declare(made, name, declared)

    @made.task(name="echo", shared=False)
    def echo(*args: Any) -> list[Any]:
        return list(args)

    return made


app = make_app(json.loads(os.environ.get("HIGHLANDER_ARENA_CONF", "{}")))
