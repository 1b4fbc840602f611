"""A term that a test leads, and the work that it does, in threads; knows of no database."""

from __future__ import annotations

import inspect
import threading
from typing import TYPE_CHECKING, Any

from celery_highlander.clock import boot_time
from celery_highlander.testing.leaderships import StillRunningError
from celery_highlander.worker.leadership import Leadership, set_current

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_highlander.keeper.cell import LeaseCell
    from celery_highlander.worker.leadership import TermInfo

PATIENCE = 30.0
"""Seconds to wait for what comes in milliseconds, on a busy machine."""


class Work:
    """A function that runs in a thread, as the work of a term.

    Attributes:
        result: what it returned.
        error: what it raised, or None.
    """

    def __init__(self, function: Callable[..., Any], leadership: Leadership) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self._function = function
        self._leadership = leadership
        name = getattr(function, "__qualname__", repr(function))
        self._thread = threading.Thread(target=self._run, name=f"highlander-test {name}", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether it still runs."""
        return self._thread.is_alive()

    def wait(self, timeout: float = PATIENCE) -> Any:
        """Wait for its end and return its result; what it raised is raised.

        Raises:
            StillRunningError: it goes on after `timeout` seconds.
        """
        self._thread.join(max(0.0, timeout))
        if self.is_running:
            raise StillRunningError(f"{self._thread.name.partition(' ')[2]} has not ended within {timeout:.3g} s")
        if self.error is not None:
            raise self.error
        return self.result

    def _run(self) -> None:
        set_current(self._leadership)  # of this thread
        try:
            takes_it = inspect.signature(self._function).parameters
            self.result = self._function(self._leadership) if takes_it else self._function()
        except BaseException as error:  # noqa: BLE001  # whatever it is: the test hears of it
            self.error = error

    def __repr__(self) -> str:
        return f"<{self._thread.name}, {'running' if self.is_running else 'ended'}>"


class Term:
    """One term of a singleton, led by the test that elected it.

    Attributes:
        name: the singleton.
        token: its fencing token; later terms have higher ones.
        leadership: what the work sees, of the class that it sees in a worker.
    """

    def __init__(self, info: TermInfo, cell: LeaseCell, end: Callable[[Term, str], None]) -> None:
        self.leadership = Leadership(info, cell)
        self.name = info.name
        self.token = info.token
        self._cell = cell
        self._end = end
        self._works: list[Work] = []
        self._killed_at: float | None = None  # when a worker would have killed what ran
        self._is_checked = False
        self.has_ended = False

    def run(self, function: Callable[..., Any]) -> Work:
        """Run a function in a thread as the work of this term, as a worker runs it in a process.

        It gets the leadership if it takes an argument, and `current_leadership()` finds it.
        """
        work = Work(function, self.leadership)
        self._works.append(work)
        return work

    def step_down(self, reason: str = "the test deposes it") -> None:
        """Depose the leader: its work is told to stop, and has the drain time-out for that.

        Returns when the work has ended, and `leader_stepped_down` was sent. What the work raised is raised.

        Raises:
            StillRunningError: a worker would have killed the work.
        """
        self._end(self, reason)
        self.check()

    def check(self) -> None:
        """After the end of the term: raise what is wrong with how its work ended.

        Raises:
            StillRunningError: a worker would have killed it.
        """
        if self._is_checked:
            return
        self._is_checked = True  # told once
        late = [work for work in self._works if work.is_running]
        if late or self._killed_at is not None:
            raise StillRunningError(
                f"{', '.join(map(repr, late)) or 'work'} of {self.name!r} did not stop in time after it was told to: "
                "a worker would have killed it. It has to return soon after leadership.wait(...) returned True."
            )
        for work in self._works:
            work.wait(0.0)

    def _tell(self) -> None:
        self.leadership._must_stop()

    def _is_over(self, kill_at: float | None) -> bool:
        """Whether no work is left; notes when some went on for too long."""
        running = any(work.is_running for work in self._works)
        if running and kill_at is not None and boot_time() >= kill_at:
            self._killed_at = self._killed_at or kill_at
        return not running

    def __repr__(self) -> str:
        return f"<Term of {self.name!r}, token {self.token}>"
