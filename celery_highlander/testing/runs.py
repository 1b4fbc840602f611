"""The keys of singleton tasks, held in this process alone: what a keeper would answer, without any."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any

from celery_highlander.errors import DatabaseUnavailableError, SingletonConflictError
from celery_highlander.keeper.run_table import Want
from celery_highlander.store.waiting import Row
from celery_highlander.tasks import client

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

    from celery_highlander.store.waiting import Waiting
    from celery_highlander.tasks.singleton import SingletonTask


class FakeRunClient:
    """Does for the runs of this process what a keeper does for those of a node."""

    is_usable = True

    def __init__(self) -> None:
        self.available = True
        self._changed = threading.Condition()
        self._held: dict[int, str] = {}  # slot: task id
        self._tokens: dict[int, int] = {}
        self._waiting: dict[int, Row] = {}

    @contextlib.contextmanager
    def hold(self, want: Want, *, gone_with_it: bool = False) -> Iterator[tuple[int, int | None]]:
        """See `RunClient.hold`."""
        del gone_with_it
        slot = self._take(want)
        try:
            yield slot, self._tokens[slot] if want.fenced else None
        finally:
            with self._changed:
                del self._held[slot]
                self._changed.notify_all()

    def _take(self, want: Want) -> int:
        slots = range(want.base, want.base + want.limit)
        with self._changed:
            self._check()
            if not self._changed.wait_for(lambda: any(slot not in self._held for slot in slots), want.wait):
                by = self._held[slots[0]]
                raise SingletonConflictError(f"{want.name} is held, by task {by}.", key=want.name, task_id=by)
            slot = next(slot for slot in slots if slot not in self._held)
            self._held[slot] = want.task_id
            self._tokens[slot] = self._tokens.get(slot, 0) + 1
            return slot

    def claim(self, message: Waiting) -> Row | None:
        """See `RunClient.claim`."""
        with self._changed:
            self._check()
            found = self._waiting.get(message.key)
            if found is None:
                said = (message.key, message.name, message.task, message.task_id, message.queue)
                self._waiting[message.key] = Row(*said, age=0.0, expired=False, missed=0)
            return found

    def forget(self, task_id: str, *, wait: bool = False) -> None:
        """See `RunClient.forget`."""
        del wait
        with self._changed:
            for key in [key for key, row in self._waiting.items() if row.task_id == task_id]:
                del self._waiting[key]

    def _check(self) -> None:
        if not self.available:
            raise DatabaseUnavailableError("the test has taken the database away.")


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
        self._client.available = False
        try:
            yield
        finally:
            self._client.available = True

    def _bound(self, task: SingletonTask) -> Any:
        return self._app.tasks[task.name]


def _moved(want: Want, slot: int) -> Want:
    fields = {name: getattr(want, name) for name in Want.__dataclass_fields__}
    return Want(**{**fields, "base": want.base + slot})
