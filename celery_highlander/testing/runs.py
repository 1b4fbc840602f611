"""The keys of singleton tasks, held in this process alone, and a run as a worker makes it."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from celery import states
from celery.app.trace import build_tracer
from celery.result import EagerResult
from celery.utils import uuid

from celery_highlander.clock import boot_time
from celery_highlander.errors import DatabaseUnavailableError, SingletonConflictError, SingletonKeyError, StaleTermError
from celery_highlander.keeper.run_table import Want
from celery_highlander.store.waiting import Row, Waiting
from celery_highlander.tasks import client
from celery_highlander.tasks.watch import ActiveRun

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from celery import Celery

    from celery_highlander.tasks.singleton import SingletonTask


def deliver(
    task: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    task_id: str | None = None,
) -> EagerResult:
    """Run a task in this thread as a worker does that has got its message; return the state and the result.

    Other than `task.apply()`, which Celery tells the task of, and in which nothing can be retried later. Nothing is
    written to a result backend; a run that comes again later is sent to the app's broker (`memory://` will do).
    """
    task_id = task_id or uuid()
    request = {
        "id": task_id,
        "task": task.name,
        "is_eager": False,
        "ignore_result": True,
        "retries": 0,
        "hostname": "test",
        "delivery_info": {"exchange": "", "routing_key": "celery", "redelivered": False},
    }
    # `eager` here: keep away from the result backend.
    trace = build_tracer(task.name, task, eager=True, propagate=False, app=task.app)
    result, info, *_ = trace(task_id, tuple(args), dict(kwargs or {}), request)
    if info is None:
        return EagerResult(task_id, result, states.SUCCESS, name=task.name)
    return EagerResult(task_id, info.retval, info.state, traceback=getattr(result, "traceback", None), name=task.name)


def want_of(task: SingletonTask, args: Sequence[Any], kwargs: Mapping[str, Any], task_id: str) -> Want:
    """Return what a run of `task` with these arguments wants; it goes on when its lock is lost.

    Raises:
        SingletonKeyError: it is no singleton task.
        ConfigurationError: its options cannot work, or the plugin is not installed in its app.
    """
    options = getattr(task, "_options", None)
    mistake = getattr(task, "_mistake", None)
    if mistake is not None:
        raise mistake
    if options is None:
        raise SingletonKeyError(f"{task!r} is no singleton task, so there is nothing to hold.")
    key = task._key_of(args, kwargs)
    return Want(
        base=task._base(key),
        limit=options.limit,
        name=key,
        task=str(task.name),
        task_id=task_id,
        wait=0.0,
        fenced=options.fenced,
        abort=False,
    )


class FakeRunClient:
    """In the place of `tasks.client.RunClient`: gives keys to the runs of this process, from memory."""

    is_usable = True

    def __init__(self) -> None:
        self.reason_away = ""
        self._changed = threading.Condition()
        self._holders: dict[int, str] = {}  # slot to task id
        self._waiting: dict[int, tuple[Waiting, float]] = {}
        self._runs: list[ActiveRun] = []
        self._tokens: dict[int, int] = {}
        self._numbers = itertools.count(1)

    @contextlib.contextmanager
    def hold(self, want: Want, *, gone_with_it: bool = False) -> Iterator[tuple[int, int | None]]:
        """Hold the key while the block runs.

        Raises:
            SingletonConflictError: it is held by others.
            DatabaseUnavailableError: the database is away.
            SingletonRunLostError: raised in the block when the lock is lost.
        """
        slot = self._take(want)
        token = self.next_token(slot) if want.fenced else None
        run = ActiveRun(next(self._numbers), want.name, abort=want.abort)
        self._runs.append(run)
        try:
            try:
                yield slot, token
            finally:
                run.end()
        finally:
            run.over = True
            self._runs.remove(run)
            with self._changed:
                del self._holders[slot]
                self._changed.notify_all()

    def _take(self, want: Want) -> int:
        give_up_at = time.monotonic() + want.wait
        slots = range(want.base, want.base + want.limit)
        with self._changed:
            while True:
                if self.reason_away:
                    raise DatabaseUnavailableError(f"{want.name} cannot be locked: {self.reason_away}.")
                slot = next((slot for slot in slots if slot not in self._holders), None)
                if slot is not None:
                    self._holders[slot] = want.task_id
                    return slot
                left = give_up_at - time.monotonic()
                if left <= 0:
                    holder = self._holders[want.base]
                    raise SingletonConflictError(
                        f"{want.name} is held, by task {holder}.", key=want.name, task_id=holder
                    )
                self._changed.wait(left)

    def next_token(self, key: int) -> int:
        """Return a token for `key` above all that it had."""
        self._tokens[key] = self._tokens.get(key, 0) + 1
        return self._tokens[key]

    def check_token(self, key: int, token: int, what: str) -> None:
        """Do what a fence does.

        Raises:
            StaleTermError: the key has a later token.
        """
        if self._tokens.get(key) != token:
            raise StaleTermError(f"{what} with the token {token} is over: a later one has begun.")

    def lose_all(self, reason: str) -> None:
        """Take the lock of every run away."""
        for run in list(self._runs):
            run.lose(reason, boot_time())

    def set_away(self, reason: str) -> None:
        """Have the database away, or, with the empty string, back."""
        with self._changed:
            self.reason_away = reason
            self._changed.notify_all()

    def claim(self, message: Waiting) -> Row | None:
        """Record a message that is about to be sent; return what waits already.

        Raises:
            DatabaseUnavailableError: the database is away.
        """
        if self.reason_away:
            raise DatabaseUnavailableError(f"the database cannot be asked what waits: {self.reason_away}.")
        found, since = self._waiting.setdefault(message.key, (message, time.time()))
        if found.task_id == message.task_id:
            return None
        age = time.time() - since
        expired = found.lives is not None and age > found.lives
        return Row(found.key, found.name, found.task, found.task_id, found.queue, age, expired, 0)

    def forget(self, task_id: str, *, wait: bool = False) -> None:
        """Free the row of a message that waits no more."""
        for key, (message, _) in list(self._waiting.items()):
            if message.task_id == task_id and not self.reason_away:
                del self._waiting[key]


class SingletonRuns:
    """While the block runs, singleton tasks of this process take their keys here: eager ones, and a test worker's.

    Args:
        app: the app whose tasks they are; the plugin has to be installed in it.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._client = FakeRunClient()
        self._before: tuple[Any, int] = (None, 0)

    def __enter__(self) -> SingletonRuns:  # noqa: PYI034  # Self comes with Python 3.11
        self._before = client._client, client._pid
        client._client, client._pid = self._client, os.getpid()  # type: ignore[assignment]  # it has the same methods
        return self

    def __exit__(self, *exception: object) -> None:
        client._client, client._pid = self._before

    def key_of(self, task: SingletonTask, *args: Any, **kwargs: Any) -> str:
        """Return the text of the key of a call."""
        return str(self._bound(task)._key_of(args, kwargs))

    @contextlib.contextmanager
    def held(self, task: SingletonTask, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Hold the key of a call while the block runs, in every slot of its limit."""
        bound = self._bound(task)
        key = str(bound._key_of(args, kwargs))
        want = Want(bound._base(key), 1, key, str(bound.name), "another-run", 0.0, fenced=False, abort=False)
        with contextlib.ExitStack() as exits:
            for slot in range(bound._options.limit):
                exits.enter_context(self._client.hold(_moved(want, slot)))
            yield

    @contextlib.contextmanager
    def unavailable(self) -> Iterator[None]:
        """Have the database be away while the block runs."""
        self._client.set_away("the test has taken the database away")
        try:
            yield
        finally:
            self._client.set_away("")

    def _bound(self, task: SingletonTask) -> Any:
        return self._app.tasks[task.name]


def _moved(want: Want, slot: int) -> Want:
    fields = {name: getattr(want, name) for name in Want.__dataclass_fields__}
    return Want(**{**fields, "base": want.base + slot})
