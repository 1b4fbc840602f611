"""How a running task of a singleton queue is stopped for good: the one place where the worker's pool matters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from celery_highlander.keeper.victims import Victim, hold

if TYPE_CHECKING:
    from celery.worker import WorkController
    from celery.worker.request import Request


class TaskStopper(Protocol):
    """Stops a running request. Called on the link's thread; must not block and must not raise."""

    announcement: str
    """What becomes of a task that does not stop in time, for the log at start-up; empty where only the task dies."""

    def kill(self, request: Request) -> bool:
        """Kill the request's task; return False where this pool cannot, and the keeper has to kill the worker."""

    def is_dead(self, request: Request) -> bool:
        """Return whether the task that was killed is dead."""


class PreforkStopper:
    """Prefork: the child that runs the task is killed; the pool replaces it."""

    announcement = ""

    def __init__(self) -> None:
        self._victims: dict[int, Victim] = {}

    def kill(self, request: Request) -> bool:
        """Kill the child; a request that no child has accepted yet cannot be killed."""
        if id(request) in self._victims:
            return True
        pid = request.worker_pid
        victim = hold(pid) if pid else None
        if victim is None:
            return False
        victim.kill()
        self._victims[id(request)] = victim
        return True

    def is_dead(self, request: Request) -> bool:
        """Return whether the child is dead."""
        victim = self._victims.get(id(request))
        if victim is None or not victim.dead:
            return False
        victim.close()
        del self._victims[id(request)]
        return True


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


def stopper_for(worker: WorkController) -> TaskStopper:
    """Return how the worker's pool stops a task."""
    pool = worker.pool_cls
    name = getattr(pool, "__module__", str(pool)).rpartition(".")[2]
    return PreforkStopper() if name == "prefork" else WorkerStopper(name)
