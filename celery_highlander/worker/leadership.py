"""`Leadership`: what a singleton's own code sees of its term."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from celery_highlander.clock import boot_time
from celery_highlander.election.keys import lock_key
from celery_highlander.errors import HighlanderError
from celery_highlander.store.fencing import fence, fence_key_with

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from celery_highlander.keeper.cell import LeaseCell
    from celery_highlander.store.fencing import Cursor

PROGRESS_INTERVAL = 0.2
"""Seconds between two reports of progress, at least."""


@dataclass(frozen=True, slots=True)
class TermInfo:
    """What identifies a term, as it travels to a process: plain values only."""

    name: str
    token: int
    elected_at: float
    namespace: str
    schema: str
    kill_margin: float


class Leadership:
    """One term of one singleton, seen from the process that does its work.

    Attributes:
        name: the singleton.
        token: the fencing token; later terms have higher ones.
        elected_at: when the term's work was started (wall clock, seconds since the epoch).
    """

    def __init__(self, term: TermInfo, cell: LeaseCell, report: Callable[[], object] | None = None) -> None:
        """Make one.

        Args:
            term: the term.
            cell: until when its work may run.
            report: tells the keeper that the work makes progress; None where nobody asks.
        """
        self._term = term
        self._cell = cell
        self._report = report
        self._reported_at = -PROGRESS_INTERVAL
        self._stop = threading.Event()
        self.name = term.name
        self.token = term.token
        self.elected_at = term.elected_at

    @property
    def lease_deadline(self) -> float:
        """Until when this term may act at the latest, on the boot-time clock (`time.CLOCK_BOOTTIME`), in seconds."""
        return self._cell.deadline + self._term.kill_margin

    def is_valid(self) -> bool:
        """Return whether the work may act at this instant; in doubt, False. Computed at each call."""
        return not self._stop.is_set() and boot_time() < self._cell.deadline

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the work has to stop, for `timeout` seconds at most; return True as soon as it has to stop."""
        if timeout is None:
            while not self._stop.wait(0.5):
                if not self.is_valid():
                    return True
            return True
        return self._stop.wait(timeout) or not self.is_valid()

    def progress(self) -> None:
        """Say that the work makes progress; cheap, may be called as often as is handy.

        A singleton process that has called it once has to go on calling it: without a call for
        `highlander_progress_timeout` seconds it counts as hung, is killed, and another node gets its chance. In a task
        of a singleton queue it does nothing; Celery's time limits are for those.
        """
        now = boot_time()
        if self._report is not None and now - self._reported_at >= PROGRESS_INTERVAL:
            self._reported_at = now
            self._report()

    def fence(self, connection: Connection) -> None:
        """Tie the transaction of `connection` to this term; see `celery_highlander.fence`.

        Raises:
            StaleTermError: the term is over.
        """
        fence(connection, self._term.namespace, self.name, self.token, schema=self._term.schema)

    def fence_cursor(self, cursor: Cursor) -> None:
        """Do what `fence` does, over a cursor of psycopg, psycopg2 or Django, in its present transaction.

        Raises:
            StaleTermError: the term is over.
        """
        term = self._term
        key = lock_key(term.namespace, self.name)
        fence_key_with(cursor, key, self.token, f"the term of {self.name!r}", schema=term.schema)

    def _must_stop(self) -> None:
        self._stop.set()

    def __repr__(self) -> str:
        return f"<Leadership of {self.name!r}, token {self.token}>"


_current: ContextVar[Leadership | None] = ContextVar("highlander_leadership", default=None)


def current_leadership() -> Leadership:
    """Return the leadership under which the present task of a singleton queue, or singleton process, runs.

    Raises:
        HighlanderError: the calling code is not the work of a singleton.
    """
    leadership = _current.get()
    if leadership is None:
        raise HighlanderError(
            "there is no leadership here.",
            "current_leadership() works in tasks from a singleton queue, and in singleton processes.",
        )
    return leadership


def set_current(leadership: Leadership | None) -> None:
    """Set, or with None forget, the leadership of the present work."""
    _current.set(leadership)


def present_leadership() -> Leadership | None:
    """Return the leadership of the present work; None where there is none."""
    return _current.get()
