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
from typing import TYPE_CHECKING, Any

from celery import signals

from celery_highlander.clock import boot_time
from celery_highlander.keeper.cell import LeaseCell
from celery_highlander.keeper.children import ADDRESS_VARIABLE, register
from celery_highlander.keeper.marks import Searcher, TaskMark
from celery_highlander.keeper.victims import freeze
from celery_highlander.worker.leadership import Leadership, TermInfo, set_current
from celery_highlander.worker.runs import HEADER

if TYPE_CHECKING:
    from celery import Task

    from celery_highlander.worker.inside import TasksInside

_REGISTER_TIMEOUT = 5.0  # seconds: the keeper answers within milliseconds, unless it is gone
_RETRY = 0.2  # seconds between two tries to reach the keeper


class ChildGuard:
    """The guard of one pool child: a thread that does nothing while no task of a singleton queue runs here."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._wake_in, self._wake_out = socket.socketpair()
        self._connection: socket.socket | None = None
        self._cell: LeaseCell | None = None
        self._has_cell = threading.Event()
        self._guarded = 0  # running tasks of singleton queues
        self._mark = TaskMark(address)
        threading.Thread(target=self._run, name="highlander-guard", daemon=True).start()

    def enter(self, term: TermInfo) -> Leadership | None:
        """A task of a singleton queue begins; None where the keeper does not know of this process."""
        if not self._has_cell.wait(_REGISTER_TIMEOUT) or self._cell is None:
            return None
        self._guarded += 1
        self._mark.put()
        self._wake_out.send(b".")
        return Leadership(term, self._cell)

    def leave(self) -> None:
        """It has ended."""
        self._guarded -= 1
        if not self._guarded:
            self._mark.remove()
        self._wake_out.send(b".")

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._wake_in, select.POLLIN)
        while True:
            if self._connection is None and self._join():
                poll.register(self._connection.fileno(), select.POLLIN)  # type: ignore[attr-defined]  # just joined
            wait = None if self._connection is not None else _RETRY
            if self._guarded > 0 and self._cell is not None:
                left = self._cell.deadline - boot_time()
                if left <= 0:
                    self._die()  # the lease ends, and whoever should have said so is frozen
                wait = left if wait is None else min(wait, left)
            ready = {descriptor for descriptor, _ in poll.poll(None if wait is None else max(1.0, wait * 1000))}
            if self._wake_in.fileno() in ready:
                self._wake_in.recv(4096)
            if self._connection is not None and self._connection.fileno() in ready:
                poll.unregister(self._connection)
                self._has_cell.clear()
                self._connection.close()  # the keeper says nothing over it: this is its end
                self._connection = None

    def _die(self) -> None:
        """End this process, and before it what its task has started."""
        try:
            searcher = Searcher(self._address, os.getppid())
            for victim in freeze(lambda: searcher.find([os.getpid()], os.getpid())):
                victim.kill()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)

    def _join(self) -> bool:
        try:
            connection, descriptor = register(self._address, 1.0)
        except OSError:
            return False
        self._connection = connection
        self._cell = LeaseCell(descriptor)
        os.close(descriptor)
        self._has_cell.set()
        return True


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
        leadership = _guard.enter(term)
        if leadership is None:
            os.kill(os.getpid(), signal.SIGKILL)  # nobody could kill it before the lease ends: it must not begin
            return
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
