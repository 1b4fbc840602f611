"""Terms that a test begins and ends: `FakeLeadership`, and functions that run under one."""

from __future__ import annotations

import contextlib
import inspect
import threading
import time
from typing import TYPE_CHECKING, Any

from celery_highlander.clock import boot_time
from celery_highlander.errors import StaleTermError
from celery_highlander.worker import signals
from celery_highlander.worker.leadership import Leadership, TermInfo, present_leadership, set_current

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection

    from celery_highlander.store.fencing import Cursor

LEASE = 6.0
"""Seconds of a lease, where a test says nothing else."""


class StillRunningError(AssertionError):
    """The work under test did not stop in time after it was deposed."""


class _Cell:
    """Until when work may run, in this process alone."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline


class FakeLeadership(Leadership):
    """A term as the work of a singleton sees it, in the test's hands.

    Args:
        name: the singleton.
        token: its fencing token.
        lease: seconds for which it may act, unless `renew` is called.
    """

    def __init__(self, name: str = "singleton", token: int = 1, lease: float = LEASE) -> None:
        self._lease = lease
        self._deadline = _Cell(boot_time() + lease)
        term = TermInfo(name, token, time.time(), "test", "", 0.0)
        super().__init__(term, self._deadline, self._count_progress)  # type: ignore[arg-type]  # a cell of this process
        self.progressed = 0
        self.reason = ""

    def _count_progress(self) -> None:
        self.progressed += 1

    def renew(self) -> None:
        """As after a heartbeat: the whole lease from now."""
        self._deadline.deadline = boot_time() + self._lease

    def expire(self) -> None:
        """As with a database that is away: the lease has run out."""
        self._deadline.deadline = 0.0

    def depose(self, reason: str = "asked for by the test") -> None:
        """As when the keeper tells the work to stop."""
        self.reason = reason
        self._must_stop()

    def fence(self, connection: Connection | None) -> None:
        """Do nothing while the term lasts: there is no table.

        Raises:
            StaleTermError: the lease has run out, as if somebody else had begun a term since.
        """
        self._check()

    def fence_cursor(self, cursor: Cursor | None) -> None:
        """See `fence`."""
        self._check()

    def _check(self) -> None:
        if boot_time() >= self._deadline.deadline:
            raise StaleTermError(
                f"the term of {self.name!r} with the token {self.token} is over.", "The test ended it."
            )


class TestTerm:
    """The term of a function that runs under it, in a thread.

    Attributes:
        leadership: what the function has got.
        stopped_after: seconds from its being deposed to its end; None while it runs, or if it ended by itself.
        error: what it raised.
    """

    __test__ = False  # no test of pytest's

    def __init__(self, function: Callable[..., object], leadership: FakeLeadership) -> None:
        self.leadership = leadership
        self.stopped_after: float | None = None
        self.error: BaseException | None = None
        self._function = function
        self._deposed_at: float | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def depose(self, reason: str = "asked for by the test", timeout: float = LEASE) -> None:
        """Have the function stop, and wait until it has.

        Raises:
            StillRunningError: it has not, after `timeout` seconds.
        """
        if self._deposed_at is None:
            self._deposed_at = time.monotonic()
            self.leadership.depose(reason)
        if not self._over.wait(timeout):
            raise StillRunningError(
                f"{self._function.__name__} has not stopped {timeout:g} s after it was deposed; a real one is killed."
            )

    def _run(self) -> None:
        set_current(self.leadership)
        try:
            takes = inspect.signature(self._function).parameters
            self._function(self.leadership) if takes else self._function()
        except BaseException as error:  # noqa: BLE001  # shown by `elected`
            self.error = error
        finally:
            if self._deposed_at is not None:
                self.stopped_after = time.monotonic() - self._deposed_at
            self._over.set()


@contextlib.contextmanager
def elected(
    function: Callable[..., object], *, name: str = "", token: int = 1, timeout: float = LEASE
) -> Iterator[TestTerm]:
    """Run the function of a process singleton while the block runs; it is deposed at its end.

    Args:
        function: gets the leadership, if it takes an argument.
        name: the singleton; the function's own name if empty.
        token: the fencing token.
        timeout: seconds that it may take to stop.

    Raises:
        StillRunningError: it does not.
        Exception: what it has raised itself.
    """
    term = TestTerm(function, FakeLeadership(name or function.__name__, token, lease=3600.0))
    term._thread.start()
    try:
        yield term
    finally:
        term.depose(timeout=timeout)
    if term.error is not None:
        raise term.error


@contextlib.contextmanager
def leading(name: str = "singleton", token: int = 1) -> Iterator[FakeLeadership]:
    """Run the block as a task of a singleton queue runs: `current_leadership()` gives the term."""
    before = present_leadership()
    leadership = FakeLeadership(name, token)
    set_current(leadership)
    try:
        yield leadership
    finally:
        set_current(before)


def send_elected(name: str, token: int = 1) -> list[Any]:
    """Send `leader_elected` as a worker does; return what the receivers answered."""
    return list(signals.leader_elected.send(sender=name, token=token))


def send_stepped_down(name: str, token: int = 1, reason: str = "worker shutting down") -> list[Any]:
    """Send `leader_stepped_down` as a worker does."""
    return list(signals.leader_stepped_down.send(sender=name, token=token, reason=reason))


def send_lost(name: str, token: int = 1, reason: str = "no answer to a heartbeat for 2 s") -> list[Any]:
    """Send `leadership_lost` as a worker does."""
    return list(signals.leadership_lost.send(sender=name, token=token, reason=reason))
