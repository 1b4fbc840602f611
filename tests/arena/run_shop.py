"""The app with singleton tasks: each run writes a journal under its key, as an owner of its own."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery import Celery, Task
from celery.exceptions import Ignore, Reject
from celery.utils.log import get_task_logger
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from celery_highlander import Highlander, SingletonTask, current_run, singleton_task
from celery_highlander.errors import HighlanderError, SingletonConflictError, SingletonRunLostError, StaleTermError
from tests.arena.journal import UNKNOWN, Journal
from tests.arena.run_increments import add

if TYPE_CHECKING:
    from celery_highlander.tasks.singleton import SingletonRun

logger = get_task_logger(__name__)
JOURNALS = os.environ.get("HIGHLANDER_ARENA_JOURNALS", ".")
BEAT = 0.002


@singleton_task(name="before", unique_on="key")
def before(key: str) -> str:  # noqa: ARG001
    """Declared before there is an app."""
    return current_run().key


app = Celery("runs", task_cls=os.environ.get("HIGHLANDER_ARENA_TASK_CLASS"), set_as_current=True)
app.conf.update(json.loads(os.environ.get("HIGHLANDER_ARENA_CONF", "{}")))
app.conf.broker_connection_retry_on_startup = True
if os.environ.get("HIGHLANDER_ARENA_INSTALL", "1") == "1":
    Highlander(app)


class _Lines:
    """The lines of one run; of a run without a lock too."""

    def __init__(self, key: str, task_id: str) -> None:
        self._owner = (key, f"{os.getpid()}-{uuid4().hex[:8]}", UNKNOWN)
        self._journal = Journal.open(JOURNALS, key)
        self.task = self._journal.task(*self._owner, task_id)

    def beat(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._journal.write(*self._owner, "beat")
            time.sleep(BEAT)

    def beat_stubbornly(self, seconds: float) -> None:
        """Ignore whatever is raised, as code that catches every exception does."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                self.beat(end - time.monotonic())
            except BaseException as error:  # noqa: BLE001, PERF203  # the very point
                logger.warning("%s goes on after %r", self._owner[1], error)

    def close(self) -> None:
        self._journal.close()


def _work(self: Task, key: str, seconds: float, how: str) -> dict[str, Any]:
    lines = _Lines(key, self.request.id)
    try:
        with lines.task:
            if how == "stubborn":
                lines.beat_stubbornly(seconds)
            else:
                lines.beat(seconds)
            _end(self, how)
    except SingletonRunLostError:
        logger.warning("the run of %s heard that its lock is lost", key)
        raise
    finally:
        lines.close()
    return {"retries": self.request.retries, "task_id": self.request.id, "token": _token()}


def _end(self: Task, how: str) -> None:
    match how:
        case "raise":
            raise ValueError("as asked")
        case "retry" if not self.request.retries:
            raise self.retry(countdown=0)
        case "reject":
            raise Reject("as asked")
        case "ignore":
            raise Ignore("as asked")


def _token() -> int | None:
    try:
        return current_run().token
    except HighlanderError:
        return None


def _decide(task: Task, conflict: SingletonConflictError) -> str:
    return f"{task.name}[{task.request.id}]: {conflict}"


LATE = {"acks_late": True, "reject_on_worker_lost": True}
PATIENT = {"on_conflict": "wait", "wait_timeout": 60.0}
TASKS: dict[str, dict[str, Any]] = {
    "skips": {},
    "raises": {"on_conflict": "raise"},
    "retries": {"on_conflict": "retry", "retry_delay": 0.2, "max_retries": 0},
    "requeues": {"on_conflict": "requeue"},
    "waits": {**PATIENT, "max_retries": 5},
    "waits_late": {**PATIENT, **LATE},
    "impatient": {"on_conflict": "wait", "wait_timeout": 0.2, "retry_delay": 0.2},
    "decides": {"on_conflict": _decide},
    "pairs": {"limit": 2},
    "fenced": {**PATIENT, "fenced": True},
    "limited": {**PATIENT, "soft_time_limit": 1, "time_limit": 30},
    "limited_hard": {**PATIENT, "time_limit": 1},
    "goes_on": {**PATIENT, "on_lost": "continue"},
    "without_db_raises": {"on_unavailable": "raise"},
    "without_db_runs": {"on_unavailable": "run"},
    "without_db_retries": {"retry_delay": 0.2},
}
"""The tasks that beat under the key that they are given, and how they are declared."""


def _declare(name: str, options: dict[str, Any]) -> None:
    @singleton_task(name=name, key="{key}", bind=True, **options)
    def task(self: Task, key: str, seconds: float = 0.0, how: str = "return") -> dict[str, Any]:
        return _work(self, key, seconds, how)


for _name, _options in TASKS.items():
    _declare(_name, _options)


@singleton_task(name="forks", key="{key}", bind=True)
def forks(self: Task, key: str, seconds: float, how: str) -> dict[str, Any]:
    """Forks, so that its connections are open in another process too."""
    if not os.fork():
        time.sleep(seconds)
        os._exit(0)
    return _work(self, key, seconds, how)


@app.task
def echo(*args: Any, **kwargs: Any) -> list[Any]:
    """An ordinary task, for canvases."""
    return [*args, kwargs] if kwargs else list(args)


@singleton_task(name="alone")
def alone(seconds: float = 0.0) -> str:
    """One key for the whole task."""
    time.sleep(seconds)
    return current_run().key


@singleton_task(name="keyed", unique_on=["what", "kind"])
def keyed(what: Any, kind: str = "plain", *, other: int = 0) -> str:  # noqa: ARG001  # only the key matters
    """Tells its key."""
    return current_run().key


@singleton_task(name="of_function", key=lambda what, kind="plain": (kind, what))
def of_function(what: Any, kind: str = "plain") -> str:  # noqa: ARG001
    """Tells its key, which a function makes."""
    return current_run().key


@app.task(name="based", base=SingletonTask, singleton={"unique_on": "key"}, bind=True)
def based(self: Task, key: str) -> list[Any]:  # noqa: ARG001
    """Declared with Celery's own decorator."""
    return [current_run().key, self.request.id]


@singleton_task(name="fences", key="{key}", fenced=True)
def fences(key: str) -> str:  # noqa: ARG001
    """Ties a transaction to its run."""
    return _fence(current_run())


@singleton_task(name="fences_later", key="{key}", fenced=True)
def fences_later(key: str) -> str:
    """Ties a transaction to its run after another run of its key has begun and ended."""
    run = current_run()
    engine = create_engine(app.conf.highlander_url, poolclass=NullPool)
    with engine.begin() as connection:  # as if the lock had been lost meanwhile
        connection.execute(
            text("update highlander_singleton set token = token + 1 where name = :name"), {"name": f"task {key}"}
        )
    return _fence(run)


def _fence(run: SingletonRun) -> str:
    engine = create_engine(app.conf.highlander_url, poolclass=NullPool)
    try:
        with engine.begin() as connection:
            run.fence(connection)
    except StaleTermError:
        return "stale"
    return "fenced"


@singleton_task(name="linked", unique_on="key", bind=True)
def linked(self: Task, key: str) -> dict[str, Any]:
    """To be linked to others."""
    return _work(self, key, 0.0, "return")


class ContextTask(Task):
    """A base as Flask's pattern for Celery has it."""

    abstract = True
    contexts = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run within a context."""
        type(self).contexts += 1
        try:
            return self.run(*args, **kwargs)
        finally:
            type(self).contexts -= 1


@singleton_task(name="in_context", base=ContextTask, bind=True, unique_on="key")
def in_context(self: ContextTask, key: str) -> list[Any]:
    """Tells its key and how deep in contexts it is."""
    return [current_run().key if not self.request.called_directly else key, type(self).contexts]


@singleton_task(name="increments", key="{counter}", **PATIENT, **LATE)
def increments(counter: str, number: int) -> int:
    """Add one to a counter, without any care."""
    return add(counter, number)


@singleton_task(name="increments_by_retries", key="{counter}", on_conflict="retry", retry_delay=0.05, **LATE)
def increments_by_retries(counter: str, number: int) -> int:
    """Add one to a counter, without any care."""
    return add(counter, number)


if os.environ.get("HIGHLANDER_ARENA_WRONG"):

    @singleton_task(name="wrong", on_conflict="explode")
    def wrong(what: int) -> int:
        """Declared in a way that cannot work."""
        return what

    @singleton_task(name="wrong_key", unique_on="wat")
    def wrong_key(what: int) -> int:
        """Declared in another one."""
        return what
