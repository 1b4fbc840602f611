"""How a running task of a singleton queue is stopped for good: the one place where the worker's pool matters."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Protocol

from celery_highlander.clock import boot_time
from celery_highlander.keeper.children import ADDRESS_VARIABLE
from celery_highlander.keeper.marks import Searcher
from celery_highlander.keeper.victims import Victim, freeze

if TYPE_CHECKING:
    from celery.worker import WorkController
    from celery.worker.request import Request


CLEAN_UP_LIMIT = 0.2
"""Seconds for processes to die that were killed."""


class TaskStopper(Protocol):
    """Stops a running request. Called on the link's thread; must not block and must not raise."""

    announcement: str
    """What becomes of a task that does not stop in time, for the log at start-up; empty where only the task dies."""

    def kill(self, request: Request) -> bool:
        """Kill the request's task; return False where this pool cannot, and the keeper has to kill the worker."""

    def is_dead(self, request: Request) -> bool:
        """Return whether the task that was killed is dead."""

    def clean_up(self, request: Request) -> None:
        """Kill what a task has left behind whose process died by itself. Called on the consumer's thread."""


class PreforkStopper:
    """Prefork: the child that runs the task is killed, with what the task has started; the pool replaces it."""

    announcement = ""

    def __init__(self) -> None:
        self._victims: dict[int, list[Victim]] = {}

    def kill(self, request: Request) -> bool:
        """Kill the child; a request that no child has accepted yet cannot be killed."""
        if id(request) in self._victims:
            return True
        pid = request.worker_pid
        if not pid:
            return False
        searcher = Searcher(os.environ[ADDRESS_VARIABLE], os.getpid())
        victims = freeze(lambda: searcher.find([pid], pid))
        if not victims:
            return False
        for victim in victims:
            victim.kill()
        self._victims[id(request)] = victims
        return True

    def is_dead(self, request: Request) -> bool:
        """Return whether the child is dead, and all that its task has started."""
        victims = self._victims.get(id(request), [])
        if not victims or not all(victim.dead for victim in victims):
            return False
        _let_go(victims, child=request.worker_pid)
        del self._victims[id(request)]
        return True

    def clean_up(self, request: Request) -> None:
        """Kill what the task has started; wait a moment for its death, for the task may run again at once."""
        pid = request.worker_pid
        if not pid:
            return
        searcher = Searcher(os.environ[ADDRESS_VARIABLE], os.getpid())
        orphans = freeze(lambda: searcher.find([], pid))
        for orphan in orphans:
            orphan.kill()
        give_up_at = boot_time() + CLEAN_UP_LIMIT
        while not all(orphan.dead for orphan in orphans) and boot_time() < give_up_at:
            time.sleep(0.001)
        _let_go(orphans, child=pid)


def _let_go(victims: list[Victim], child: int) -> None:
    """Reap the dead orphans, which are ours as PID 1 of a container; the pool child itself is the pool's to reap."""
    for victim in victims:
        if victim.pid != child:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(victim.pid, os.WNOHANG)
        victim.close()


class WorkerStopper:
    """Any other pool: a task cannot be killed alone, so at the deadline the keeper kills the worker."""

    def __init__(self, pool: str) -> None:
        self.announcement = (
            f"the pool {pool!r} cannot kill a single task: when a task of a singleton queue does not end within "
            "highlander_drain_timeout after the leadership is lost, this whole worker is killed (SIGKILL), before its "
            "lease ends"
        )

    def kill(self, request: Request) -> bool:
        """Leave it to the keeper."""
        return False

    def is_dead(self, request: Request) -> bool:
        """Nothing dies here but the worker as a whole."""
        return False

    def clean_up(self, request: Request) -> None:
        """A task ends with the worker only."""


def stopper_for(worker: WorkController) -> TaskStopper:
    """Return how the worker's pool stops a task."""
    pool = worker.pool_cls
    name = getattr(pool, "__module__", str(pool)).rpartition(".")[2]
    return PreforkStopper() if name == "prefork" else WorkerStopper(name)
