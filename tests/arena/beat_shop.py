"""The app of the arena's beats: entries from the environment, and a task that notes each of its runs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from celery import Celery, Task
from celery.beat import BeatLazyFunc
from celery.schedules import crontab, schedule

from celery_highlander import Highlander
from tests.arena.executions import note

app = Celery("shop")
app.conf.update(json.loads(os.environ.get("HIGHLANDER_ARENA_CONF", "{}")))
app.conf.broker_connection_retry_on_startup = True
highlander = Highlander(app)
EXECUTIONS = Path(os.environ.get("HIGHLANDER_ARENA_JOURNALS", "."))


class Unspeakable:
    """Cannot be serialised."""


class Failing(schedule):
    """Raises whenever it is asked."""

    def is_due(self, last_run_at: object) -> Any:  # noqa: ARG002  # as Celery calls it
        raise RuntimeError("the calendar is gone")


def _hang() -> int:
    """Hang on the nodes that `HIGHLANDER_ARENA_FAILS` is set for, once there have been some runs."""
    if os.environ.get("HIGHLANDER_ARENA_FAILS") and list(EXECUTIONS.glob("executions.*")):
        time.sleep(600)
    return 1


def _schedule(fields: dict[str, Any]) -> Any:
    if "seconds" in fields:
        return float(fields["seconds"])
    return Failing(1.0) if fields.get("failing") else crontab(**fields["crontab"])


def _entry(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    kwargs: dict[str, Any] = {"bad": Unspeakable()} if fields.get("unspeakable") else {}
    if fields.get("hanging"):
        kwargs = {"value": BeatLazyFunc(_hang)}
    options = {"queue": "ticks", **fields.get("options", {})}
    return {"task": "run", "schedule": _schedule(fields), "args": (name,), "kwargs": kwargs, "options": options}


ENTRIES: dict[str, dict[str, Any]] = json.loads(os.environ.get("HIGHLANDER_ARENA_ENTRIES", "{}"))
app.conf.beat_schedule = {name: _entry(name, fields) for name, fields in ENTRIES.items()}


@app.task(name="run", bind=True, acks_late=True, reject_on_worker_lost=True)
def run(self: Task, entry: str, **_: Any) -> None:
    """One run of an entry."""
    mark = (self.request.headers or {}).get("highlander_tick") or {}
    note(EXECUTIONS, entry, mark.get("due_at", ""), self.request.id or "", mark.get("copy", ""))
