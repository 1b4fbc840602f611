"""Where a task runs: tells it of its leadership.

A pool child registers with the keeper, and ends itself before the lease does where nobody else can.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any

from celery import signals

from celery_highlander.clock import boot_time, poll_timeout
from celery_highlander.keeper.cell import LeaseCell
from celery_highlander.keeper.children import ADDRESS_VARIABLE, register
from celery_highlander.keeper.marks import Searcher, TaskMark
from celery_highlander.keeper.victims import freeze, hold
from celery_highlander.worker.deadman import DeadMansSwitch
from celery_highlander.worker.leadership import Leadership, TermInfo, set_current
from celery_highlander.worker.runs import HEADER

if TYPE_CHECKING:
    from celery import Task

    from celery_highlander.worker.inside import TasksInside

_REGISTER_TIMEOUT = 5.0  # seconds: the keeper answers within milliseconds, unless it is gone
_JOIN_TIMEOUT = 1.0  # seconds for it to accept a connection, and again to answer over it
_RETRY = 0.2  # seconds between two tries to reach the keeper


class ChildGuard:
    """The guard of one pool child: a thread that does nothing while no task of a singleton queue runs here."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_out.setblocking(False)
        self._connection: socket.socket | None = None
        self._cell: LeaseCell | None = None
        self._has_cell = threading.Event()
        self._guarded = 0  # running tasks of singleton queues
        self._margin = 0.0
        self._switch = DeadMansSwitch()
        self._lock = threading.Lock()  # of the switch: it must never be set while nothing runs here
        self._mark = TaskMark(address)
        threading.Thread(target=self._run, name="highlander-guard", daemon=True).start()

    def enter(self, term: TermInfo) -> Leadership | None:
        """A task of a singleton queue begins; None where the keeper does not know of this process."""
        if not self._has_cell.wait(_REGISTER_TIMEOUT) or self._cell is None:
            return None
        self._margin = term.kill_margin
        self._guarded += 1
        self._wake()
        self._mark.put()
        return Leadership(term, self._cell) if boot_time() < self._cell.deadline else None

    def leave(self) -> None:
        """It has ended."""
        with self._lock:
            self._guarded -= 1
            if not self._guarded:
                self._switch.set(0.0)
        try:
            if not self._guarded:
                self._mark.remove()
        finally:
            self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it has been told often enough
            self._wake_out.send(b".")

    def _run(self) -> None:
        try:
            self._guard()
        finally:  # it never returns: whatever this is, no task may run here unguarded
            os.kill(os.getpid(), signal.SIGKILL)

    def _guard(self) -> None:
        poll = select.poll()
        poll.register(self._wake_in, select.POLLIN)
        while True:
            if self._connection is None and not self._is_at_its_end() and self._join():
                poll.register(self._connection.fileno(), select.POLLIN)  # type: ignore[attr-defined]  # just joined
            wait = None if self._connection is not None else _RETRY
            if self._guarded > 0 and self._cell is not None:
                left = self._arm(self._cell.deadline)
                if left <= 0:
                    self._die()  # the lease ends, and whoever should have said so is frozen
                wait = left if wait is None else min(wait, left)
            ready = {descriptor for descriptor, _ in poll.poll(None if wait is None else poll_timeout(wait))}
            if self._wake_in.fileno() in ready:
                self._wake_in.recv(4096)
            if self._connection is not None and self._connection.fileno() in ready:
                poll.unregister(self._connection)
                self._has_cell.clear()
                self._connection.close()  # the keeper says nothing over it: this is its end
                self._connection = None

    def _is_at_its_end(self) -> bool:
        """Whether there is no time left for a keeper that may not answer."""
        return self._guarded > 0 and self._cell is not None and self._cell.deadline - boot_time() < 2 * _JOIN_TIMEOUT

    def _arm(self, deadline: float) -> float:
        """Have the kernel end this process should `_die` not have done so half a margin after the deadline.

        Armed only when the margin has begun, for a task may hold the GIL for as long as the lease is renewed meanwhile.

        Returns:
            Seconds until the next look; 0 or less at the deadline.
        """
        left = deadline - boot_time()
        with self._lock:
            if self._guarded:
                self._switch.set(deadline + self._margin / 2 if left <= self._margin else 0.0)
        return left - self._margin if left > self._margin else left

    def _die(self) -> None:
        """End this process and what its task has started.

        That is looked for by a fork, and this process is stopped meanwhile: the search reads what the kernel shows of
        every process, and may have to wait for any of them.
        """
        me, worker = os.getpid(), os.getppid()
        if not self._switch.works:  # a fork may have to wait for whatever is hooked into it
            os.kill(me, signal.SIGKILL)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: it needs none of them
                if os.fork() == 0:
                    _end(me, self._address, worker)
            time.sleep(self._margin / 2)
        finally:
            os.kill(me, signal.SIGKILL)

    def _join(self) -> bool:
        try:
            connection, descriptor = register(self._address, _JOIN_TIMEOUT)
        except OSError:
            return False
        try:
            self._cell = LeaseCell(descriptor)
        except (OSError, ValueError):
            connection.close()
            return False
        finally:
            os.close(descriptor)
        self._connection = connection
        self._has_cell.set()
        return True


def _end(child: int, address: str, worker: int) -> None:
    """Stop the pool child, our parent; then kill it with all that its task has started."""
    try:
        victim = hold(child)
        if victim is not None and os.getppid() == child:
            victim.send(signal.SIGSTOP)
            searcher = Searcher(address, worker)
            for found in freeze(lambda: searcher.find([child], child)):
                found.kill()
            victim.kill()
    finally:
        os._exit(0)


_guard: ChildGuard | None = None
_inside: TasksInside | None = None
_entered: set[str] = set()


def run_inside(tasks: TasksInside | None) -> None:
    """Have tasks be told of `tasks`, where they run in the worker's own process; with None by their child's guard."""
    global _inside  # noqa: PLW0603  # one for each process, like the signals that lead here
    _inside = tasks


@signals.worker_process_init.connect(weak=False)
def _start_guard(**kwargs: Any) -> None:
    """A pool child begins, or a solo pool, which is the worker itself: that has no keeper yet."""
    global _guard  # noqa: PLW0603  # as above
    address = os.environ.get(ADDRESS_VARIABLE)
    if address:
        _guard = ChildGuard(address)


@signals.task_prerun.connect(weak=False)
def _enter(task_id: str = "", task: Task | None = None, **kwargs: Any) -> None:
    fields = getattr(task.request, HEADER, None) if task is not None else None
    if fields is None:
        return
    term = TermInfo(**fields)
    if _inside is not None:
        set_current(_inside.enter(task_id, term))
    elif _guard is not None:
        leadership = None
        try:
            leadership = _guard.enter(term)
        finally:  # also of an error, which Celery would take for the signal's alone
            if leadership is None:
                os.kill(os.getpid(), signal.SIGKILL)  # nobody could kill it before the lease ends: it must not begin
        set_current(leadership)
    else:
        return
    _entered.add(task_id)


@signals.task_postrun.connect(weak=False)
def _leave(task_id: str = "", **kwargs: Any) -> None:
    if task_id not in _entered:
        return
    _entered.discard(task_id)
    set_current(None)
    if _inside is not None:
        _inside.leave(task_id)
    elif _guard is not None:
        with contextlib.suppress(OSError):
            _guard.leave()
