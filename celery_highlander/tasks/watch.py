"""What happens to a running singleton task that has lost its lock: it is interrupted, and killed at the deadline.

One native thread for each process, which sleeps as long as nothing runs. It hears of a loss from the keeper; and if the
keeper itself is frozen or dead, the lease cell says until when a run may go on.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import signal
import sys
import threading
from collections import deque
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from celery_highlander.clock import boot_time
from celery_highlander.errors import SingletonRunLostError
from celery_highlander.keeper.messages import Channel, ChannelClosedError
from celery_highlander.keeper.vocabulary import KEEPER_ANSWERS
from celery_highlander.worker import native

if TYPE_CHECKING:
    from types import FrameType

    from celery_highlander.keeper.cell import LeaseCell

logger = logging.getLogger("celery_highlander")

_DOZE = 250.0
"""Milliseconds between two looks at the deadline while runs come and go: far less than a new one has, and so rarely
that a short run wakes nobody."""

_QUIET = 40
"""Looks in a row between which no run began, until it sleeps: the next run has to wake it, and waits for that."""

_LAST_WORDS = 0.03
"""Seconds for the log's line on why this process dies, which is not waited for when nobody reads the log."""

_MOST_EARLY = 1000  # losses that are remembered for runs that are about to begin

_SIGNAL = signal.SIGRTMIN + 9 if hasattr(signal, "SIGRTMIN") else None  # one that nobody else is likely to use


def _say(level: int, message: str, **more: Any) -> None:
    """Log on a thread of its own: this one has to kill in time, and whoever logs may wait for a reader for ever."""
    with contextlib.suppress(Exception):
        native.start_thread(lambda: logger.log(level, "%s", message, **more))


class Interrupt(Protocol):
    """Raises an error in the code of one run, from another thread."""

    def raise_soon(self) -> None:
        """Raise it as soon as that code can be interrupted; does not block."""

    def close(self) -> None:
        """The run has ended, on its own thread: nothing may be raised any more."""


class ActiveRun:
    """A run that holds a key, in this process; made on the thread that runs it."""

    def __init__(self, number: int, name: str, *, abort: bool) -> None:
        self.number = number
        self.name = name
        self.abort = abort
        self.lost = ""  # why
        self.kill_at = inf
        self.over = self.overdue = False
        self.interrupt = _interrupt_here(self) if abort else None

    def end(self) -> None:
        """It has ended, and is not to be interrupted any more; called on its thread."""
        self.over = True
        if self.interrupt is not None:
            self.interrupt.close()

    def lose(self, reason: str, kill_at: float) -> None:
        """Its lock is lost."""
        if self.abort and not self.lost:
            self.lost, self.kill_at = reason, kill_at
            if self.interrupt is not None:
                self.interrupt.raise_soon()
            _say(
                logging.WARNING,
                f"a run of {self.name} has lost its lock ({reason})",
                extra={"action": "run_lost"},
            )

    @property
    def error(self) -> SingletonRunLostError:
        """What is raised in it."""
        return SingletonRunLostError(
            f"the lock of {self.name} is lost: {self.lost}.",
            "Another run may begin soon. Roll back what is not finished; it is killed when the lease ends.",
        )


class RunWatch:
    """The watch over this process's runs that rely on one keeper.

    Args:
        connection: to the keeper's desk; over it the keeper tells of losses.
        cell: until when runs may go on.
        deadly: whether this process is killed for a run that does not end in time.
    """

    def __init__(self, connection: Any, cell: LeaseCell, *, deadly: bool) -> None:
        self._channel = Channel(connection, KEEPER_ANSWERS)
        self._channel.send("watch")
        self._cell = cell
        self._deadly = deadly
        self._runs: dict[int, ActiveRun] = {}
        self._early: dict[int, tuple[str, float]] = {}  # losses of runs that had not begun yet
        self._asleep = self._had_runs = False
        self._quiet = 0  # looks since the last run
        self._wake_in, self._wake_out = native.socketpair()
        self.closed = False
        native.start_thread(self._run)

    def enter(self, run: ActiveRun) -> None:
        """A run begins."""
        self._runs[run.number] = run
        self._had_runs = True
        if self._asleep or self._cell.deadline - boot_time() < _DOZE / 1000:  # else it looks in time by itself
            self._asleep = False
            self._wake_out.send(b".")
        early = self._early.pop(run.number, None)
        if early is not None:
            run.lose(*early)

    @property
    def is_late(self) -> bool:
        """Whether no run may go on at this instant."""
        return boot_time() >= self._cell.deadline

    def leave(self, run: ActiveRun) -> None:
        """It has ended."""
        self._runs.pop(run.number, None)

    def _run(self) -> None:
        try:
            while not self.closed:
                self._turn()
        except Exception as error:  # noqa: BLE001  # whatever it is: unwatched they must not go on
            self._lose_all(repr(error))
            _say(logging.CRITICAL, "the watch over singleton tasks failed", exc_info=error)
        while self._runs:  # of a keeper that is gone: until they have ended, or are dead
            self._enforce()
            native.sleep(0.05)
        self._channel.close()

    def _turn(self) -> None:
        poll = native.poll()
        poll.register(self._channel, select.POLLIN)
        poll.register(self._wake_in, select.POLLIN)
        due = min(map(self._due, list(self._runs.values())), default=inf)
        timeout: float | None = max(1.0, min((due - boot_time()) * 1000, _DOZE))
        self._quiet = 0 if self._had_runs or self._runs else self._quiet + 1
        if self._quiet > _QUIET:
            self._asleep = True  # whoever begins from now on wakes it
            timeout = None if not self._runs else timeout  # it may have begun just now
        self._had_runs = False
        ready = {descriptor for descriptor, _ in poll.poll(timeout)}
        self._asleep = False
        if self._wake_in.fileno() in ready:
            self._wake_in.recv(4096)
        if self._channel.fileno() in ready:
            self._hear()
        self._enforce()

    def _hear(self) -> None:
        try:
            messages = self._channel.receive()
        except ChannelClosedError:
            self.closed = True
            self._lose_all("the keeper died")
            return
        for message in messages:
            if message["type"] == "lost":
                self._lost(message["run"], message["reason"], message["kill_at"])

    def _lost(self, number: int, reason: str, kill_at: float) -> None:
        while len(self._early) >= _MOST_EARLY:
            self._early.pop(next(iter(self._early)))
        self._early[number] = reason, kill_at  # first, or one that begins just now would not find it
        run = self._runs.get(number)
        if run is not None and self._early.pop(number, None) is not None:
            run.lose(reason, kill_at)

    def _lose_all(self, reason: str) -> None:
        self.closed = True
        for run in list(self._runs.values()):
            run.lose(reason, self._cell.deadline)

    def _enforce(self) -> None:
        """Kill this process where a run goes on that may not: also where nobody has said so."""
        now = boot_time()
        for run in list(self._runs.values()):
            if now < self._due(run) or run.number not in self._runs:
                continue
            run.lose("its lease ends", now)
            run.overdue = True
            if self._deadly:
                _say(logging.CRITICAL, f"killing this process: {run.name} did not end before its lease does")
                native.sleep(_LAST_WORDS)
                os.kill(os.getpid(), signal.SIGKILL)
            _say(logging.CRITICAL, f"{run.name} goes on UNSAFELY: its lease has ended")

    def _due(self, run: ActiveRun) -> float:
        """When a run has to be over."""
        if not run.abort or run.overdue:
            return inf
        return run.kill_at if run.lost else self._cell.deadline


# -- interrupts --------------------------------------------------------------------------------------------------------


def _interrupt_here(run: ActiveRun) -> Interrupt | None:
    """What fits the calling thread; None where nothing does: then the run is killed at its deadline."""
    patched_by = native.patched_by()
    if patched_by == "gevent":
        return _GreenletInterrupt(run)
    if patched_by == "eventlet":
        return None
    if _SIGNAL is not None and native.thread_ident() == threading.main_thread().ident:
        return _SignalInterrupt(run)
    return _ThreadInterrupt(run)


class _SignalInterrupt:
    """Of the main thread: a signal also ends a system call that blocks."""

    _active: ClassVar[deque[ActiveRun]] = deque()  # the innermost one last: a task may run another one eagerly
    _installed = False

    def __init__(self, run: ActiveRun) -> None:
        cls = _SignalInterrupt
        if not cls._installed and _SIGNAL is not None:
            signal.signal(_SIGNAL, cls._handle)
            cls._installed = True
        self._run = run
        self._thread = native.thread_ident()
        cls._active.append(run)

    def raise_soon(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pthread_kill(self._thread, _SIGNAL)  # type: ignore[arg-type]  # it is there: this class is used

    def close(self) -> None:
        with contextlib.suppress(ValueError):  # it was raised
            _SignalInterrupt._active.remove(self._run)

    @staticmethod
    def _handle(_number: int, _frame: FrameType | None) -> None:
        for run in list(_SignalInterrupt._active):
            if run.lost and not run.over:
                _SignalInterrupt._active.remove(run)
                raise run.error


class _ThreadInterrupt:
    """Of another thread: raised between two instructions of Python, so not in a system call."""

    def __init__(self, run: ActiveRun) -> None:
        self._run = run
        self._ident = native.thread_ident()
        self._lock = native.lock()
        self._raised = self._closed = False

    def raise_soon(self) -> None:
        with self._lock:
            if not self._closed:
                self._raised = _raise_in(self._ident, SingletonRunLostError)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._raised:
                _raise_in(self._ident, None)  # should it not have been raised yet, it must not hit what comes next


class _GreenletInterrupt:
    """Of a greenlet of gevent: raised when it is switched to the next time."""

    def __init__(self, run: ActiveRun) -> None:
        gevent = sys.modules["gevent"]  # there where this is needed

        greenlet = gevent.getcurrent()
        self._wake = gevent.get_hub().loop.async_()
        self._wake.start(lambda: greenlet.throw(run.error) if run.lost and not run.over else None)

    def raise_soon(self) -> None:
        self._wake.send()

    def close(self) -> None:
        self._wake.stop()
        self._wake.close()


def _raise_in(ident: int, error: type[BaseException] | None) -> bool:
    raised = None if error is None else ctypes.py_object(error)
    threads: int = ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), raised)
    return threads == 1
