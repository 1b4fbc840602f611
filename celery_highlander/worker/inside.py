"""Tasks of singleton queues that run in the worker's own process: pools of threads and greenlets, and solo.

They need no guard of their own: the thread of the link watches the lease for them.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from celery.exceptions import Reject

from celery_highlander.worker import native
from celery_highlander.worker.leadership import Leadership

if TYPE_CHECKING:
    from celery_highlander.keeper.cell import LeaseCell
    from celery_highlander.worker.leadership import TermInfo


class LeadershipLostError(Reject):
    """Raised in a running task whose worker has lost the leadership of its queue, in pools of threads and in solo.

    Celery then gives the task's message back (if it is acknowledged late), and the next leader runs it. Code of a task
    may catch it to clean up, and has to let it pass.
    """

    def __init__(self, reason: str = "the leadership is lost", requeue: bool = True) -> None:
        super().__init__(reason, requeue)


class TasksInside:
    """The tasks of singleton queues that run in this process at the moment."""

    def __init__(self, cell: LeaseCell) -> None:
        self._cell = cell
        self._lock = native.lock()
        self._threads: dict[str, int] = {}
        self._interrupted: set[str] = set()

    def enter(self, task_id: str, term: TermInfo) -> Leadership:
        """A task begins, on the calling thread."""
        self._threads[task_id] = native.thread_ident()
        return Leadership(term, self._cell)

    def leave(self, task_id: str) -> None:
        """It has ended."""
        with self._lock:
            ident = self._threads.pop(task_id, None)
            if task_id in self._interrupted:
                self._interrupted.discard(task_id)
                _raise_in(ident, None)  # should it not have been raised yet, it must not hit the thread's next task

    def interrupt(self, task_id: str) -> bool:
        """Have `LeadershipLostError` raised in the task, at the next instruction of Python; return whether it was."""
        with self._lock:
            ident = self._threads.get(task_id)
            if ident is None or task_id in self._interrupted:
                return False
            self._interrupted.add(task_id)
            return _raise_in(ident, LeadershipLostError)


def _raise_in(ident: int | None, error: type[BaseException] | None) -> bool:
    if ident is None:
        return False
    raised = None if error is None else ctypes.py_object(error)
    threads: int = ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), raised)
    return threads == 1
