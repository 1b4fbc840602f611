"""`FakeKeeper`: elections and singleton runs in this process alone; it starts nothing and connects to nothing."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any
from unittest import mock

from celery_highlander.clock import boot_time
from celery_highlander.election.keys import lock_key
from celery_highlander.election.lease import Timing
from celery_highlander.errors import DatabaseUnavailableError, HighlanderError
from celery_highlander.keeper.cell import LeaseCell, create
from celery_highlander.store import fencing
from celery_highlander.tasks import client, singleton, waiting
from celery_highlander.testing.runs import FakeRunClient, want_of
from celery_highlander.testing.terms import Term
from celery_highlander.worker import leadership
from celery_highlander.worker.highlander import Highlander
from celery_highlander.worker.leadership import TermInfo
from celery_highlander.worker.signals import leader_elected, leader_stepped_down, leadership_lost

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from celery import Celery
    from typing_extensions import Self

    from celery_highlander.tasks.singleton import SingletonTask

_LOOK = 0.002  # seconds between two looks at work that has to stop


class _FakeCell(LeaseCell):
    """A lease that is renewed without end, until somebody ends it."""

    def __init__(self, timing: Timing) -> None:
        descriptor = create()
        super().__init__(descriptor)
        os.close(descriptor)
        self._left = timing.lease - timing.kill_margin
        self._ends_at: float | None = None

    @property
    def deadline(self) -> float:
        """When work that still runs has to be dead."""
        return boot_time() + self._left if self._ends_at is None else self._ends_at

    @deadline.setter
    def deadline(self, value: float) -> None:
        self._ends_at = value


class FakeKeeper:
    """In the place of a worker's keeper and its database, for as long as the `with` block lasts.

    Not faked: that a fence holds up the next term until its transaction ends; `highlander.status()` and `whereis()`,
    which ask the database; the killing: work that goes on for too long is a `StillRunningError`.

    Args:
        app: its namespace and durations hold; the defaults of the settings if None.

    Example:
        >>> with FakeKeeper(app) as keeper:
        ...     term = keeper.elect("price-feed")
        ...     work = term.run(price_feed)
        ...     term.step_down()  # fails if price_feed does not stop in time
    """

    def __init__(self, app: Celery | None = None) -> None:
        highlander = Highlander.of(app) if app is not None else None
        settings = highlander.settings() if highlander is not None else None
        self._namespace = settings.namespace if settings else "celery"
        self._schema = settings.schema if settings else ""
        self._timing = settings.timing if settings else Timing()
        self._runs = FakeRunClient()
        self._terms: dict[str, Term] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        put = self._stack.enter_context
        put(mock.patch.multiple(client, _client=self._runs, _pid=os.getpid()))
        put(mock.patch.multiple(waiting, claim=self._claim, forget=self._forget))
        put(mock.patch.object(fencing, "fence_key", self._fence_key))
        put(mock.patch.object(singleton, "fence_key", self._fence_key))
        put(mock.patch.object(leadership, "fence_key_with", self._fence_key))
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            late = self._end_all("the test is over", lost=False)
        finally:
            self._stack.close()
        if exc_info[0] is None:
            for term in late:
                term.check()

    # -- elections -----------------------------------------------------------------------------------------------------

    def elect(self, name: str) -> Term:
        """Elect the leader of `name`, and send `leader_elected`.

        Raises:
            DatabaseUnavailableError: the database is away.
            HighlanderError: there is a leader already.
        """
        if self._runs.reason_away:
            raise DatabaseUnavailableError(f"nobody is elected: {self._runs.reason_away}.")
        if name in self._terms:
            raise HighlanderError(f"{name!r} has a leader already.", "There can be only one: end its term first.")
        timing = self._timing
        token = self._runs.next_token(lock_key(self._namespace, name))
        info = TermInfo(name, token, time.time(), self._namespace, self._schema, timing.kill_margin)
        term = self._terms[name] = Term(
            info, _FakeCell(timing), lambda term, reason: self._end(term, reason, lost=False)
        )
        leader_elected.send(sender=name, token=token)
        return term

    def expire(self, term: Term) -> None:
        """Let the lease of a term end without a word, as where everybody else on the node is frozen or dead.

        `is_valid()` is False from now on; a worker would have killed the work by now.
        """
        term._cell.deadline = boot_time() - self._timing.kill_margin

    def lose_session(self, reason: str = "the test took the lock session away") -> None:
        """Lose the lock session: every term is lost, `leadership_lost` is sent, every singleton run has lost its lock.

        There is another session at once. What work raised is raised.

        Raises:
            StillRunningError: a worker would have killed some work.
        """
        terms = self._end_all(reason, lost=True)
        self._runs.lose_all(reason)  # last: where one runs on this very thread, it is interrupted here
        for term in terms:
            term.check()

    def lose_database(self, reason: str = "the test took the database away") -> None:
        """Lose the lock session, and get no other one until `restore_database()`.

        Raises:
            StillRunningError: a worker would have killed some work.
        """
        self._runs.set_away(reason)
        self.lose_session(reason)

    def restore_database(self) -> None:
        """Let the database be back."""
        self._runs.set_away("")

    def _end_all(self, reason: str, *, lost: bool) -> list[Term]:
        terms = list(self._terms.values())
        for term in terms:
            term._tell()
        for term in terms:
            self._end(term, reason, lost=lost)
        return terms

    def _step_down(self, term: Term, reason: str) -> None:
        self._end(term, reason, lost=False)

    def _end(self, term: Term, reason: str, *, lost: bool) -> None:
        if term.has_ended:
            return
        now = boot_time()
        kill_at = min(now + self._timing.drain_timeout, max(now, term._cell.deadline))
        term._tell()
        while not term._is_over(kill_at) and boot_time() < kill_at:
            time.sleep(_LOOK)
        term._is_over(kill_at)
        term._cell.deadline = kill_at  # no heartbeat renews it any more
        term.has_ended = True
        del self._terms[term.name]
        signal = leadership_lost if lost else leader_stepped_down
        signal.send(sender=term.name, token=term.token, reason=reason)

    # -- singleton runs ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def hold(
        self,
        task: SingletonTask,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        task_id: str = "another-run",
    ) -> Iterator[str]:
        """Hold the key of a call of `task` during the block, as another run would; gives the key's text.

        Raises:
            SingletonConflictError: it is held.
            DatabaseUnavailableError: the database is away.
        """
        want = want_of(task, args, kwargs or {}, task_id)
        with self._runs.hold(want):
            yield want.name

    def _claim(self, _app: Celery, message: Any) -> Any:
        return self._runs.claim(message)

    def _forget(self, _app: Celery, task_id: str, *, wait: bool = False) -> None:
        self._runs.forget(task_id, wait=wait)

    def _fence_key(self, _where: object, key: int, token: int, what: str, *, schema: str = "") -> None:
        self._runs.check_token(key, token, what)
