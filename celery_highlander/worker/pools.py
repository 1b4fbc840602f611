"""How a running task of a singleton queue is stopped for good: the one place where the worker's pool matters."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING, Any, Protocol

from celery.exceptions import TaskRevokedError

from celery_highlander.clock import boot_time
from celery_highlander.keeper.children import ADDRESS_VARIABLE
from celery_highlander.keeper.marks import Searcher
from celery_highlander.keeper.victims import Victim, freeze

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery.worker import WorkController

    from celery_highlander.worker.inside import TasksInside
    from celery_highlander.worker.runs import Run

logger = logging.getLogger("celery_highlander")

_THEN_THE_WORKER = "what does not end by that is stopped with this whole worker (SIGKILL), before its lease ends"
_CONTINUES = "what does not end by that CONTINUES beside the next leader (highlander_on_stuck = 'continue': unsafe)"


CLEAN_UP_LIMIT = 0.2
"""Seconds for processes to die that were killed."""


class TaskStopper(Protocol):
    """Stops a running task. `stop` and `is_dead` are called on the link's thread; they must not block or raise."""

    announcement: str
    """What becomes of a task that does not stop in time, for the log at start-up."""

    inside: bool
    """Whether tasks run in the worker's own process."""

    def stop(self, run: Run) -> None:
        """Stop the task for good, if this pool can; called again and again until the run is over."""

    def is_dead(self, run: Run) -> bool:
        """Whether a task that was killed is dead, though the pool has not said so yet."""

    def refusal(self) -> BaseException:
        """What is raised in the pool to keep a task from beginning."""

    def clean_up(self, run: Run) -> None:
        """Kill what a task has left behind whose process died by itself. Called on the consumer's thread."""


class PreforkStopper:
    """Prefork: the child that runs the task is killed, with what the task has started; the pool replaces it."""

    announcement = "its pool child is killed (SIGKILL)"
    inside = False

    def __init__(self, soon: Callable[[Callable[[], None]], None]) -> None:
        self._soon = soon
        self._victims: dict[int, list[Victim]] = {}

    def stop(self, run: Run) -> None:
        """Kill the child; a request that no child has accepted yet cannot be killed."""
        pid = run.request.worker_pid
        if run.killed or not pid:
            return
        with contextlib.suppress(OSError):  # tried again with the next look; at the lease's end the child ends itself
            self._stop(run, pid)

    def _stop(self, run: Run, pid: int) -> None:
        searcher = Searcher(os.environ[ADDRESS_VARIABLE], os.getpid())
        victims = freeze(lambda: searcher.find([pid], pid))
        if not victims:
            return
        run.killed = True
        for victim in victims:
            victim.kill()
        self._victims[id(run)] = victims
        _log_killed(run)
        self._soon(run.put_back)

    def is_dead(self, run: Run) -> bool:
        """Whether the child is dead, and all that its task has started."""
        victims = self._victims.get(id(run), [])
        if not victims or not all(victim.dead for victim in victims):
            return False
        _let_go(victims, child=run.request.worker_pid)
        del self._victims[id(run)]
        return True

    def clean_up(self, run: Run) -> None:
        """Kill what the task has started; wait a moment for its death, for the task may run again at once."""
        pid = run.request.worker_pid
        if not pid:
            return
        orphans: list[Victim] = []
        with contextlib.suppress(OSError):
            searcher = Searcher(os.environ[ADDRESS_VARIABLE], os.getpid())
            orphans = freeze(lambda: searcher.find([], pid))
        for orphan in orphans:
            orphan.kill()
        give_up_at = boot_time() + CLEAN_UP_LIMIT
        while not all(orphan.dead for orphan in orphans) and boot_time() < give_up_at:
            time.sleep(0.001)
        _let_go(orphans, child=pid)

    def refusal(self) -> BaseException:
        """Never asked for: a child has begun when it says that it accepts."""
        return _refused()


class GreenStopper:
    """gevent and eventlet: the greenlet is killed. One that does not yield cannot be."""

    inside = True

    def __init__(self, pool: Any, soon: Callable[[Callable[[], None]], None], *, kills_worker: bool) -> None:
        self._pool = pool
        self._soon = soon
        self.announcement = f"its greenlet is killed; {_THEN_THE_WORKER if kills_worker else _CONTINUES}"

    def stop(self, run: Run) -> None:
        """Have the greenlet killed by the worker's loop. It ends as a success, which `killed` keeps from being one."""
        if not run.killed and run.begun:
            run.killed = True
            _log_killed(run)
            self._soon(lambda: self._pool().terminate_job(run.request.worker_pid))

    def is_dead(self, run: Run) -> bool:
        """Only its end says so."""
        return False

    def clean_up(self, run: Run) -> None:
        """A greenlet has no process of its own."""

    def refusal(self) -> BaseException:
        """Ends a greenlet without a word."""
        from greenlet import GreenletExit  # type: ignore[import-untyped]  # it has no types

        quiet: BaseException = GreenletExit()
        return quiet


class ThreadStopper:
    """threads and solo: `LeadershipLostError` is raised in the task. One that is in a C call does not notice."""

    inside = True

    def __init__(self, tasks: TasksInside, *, kills_worker: bool) -> None:
        self._tasks = tasks
        self.announcement = f"LeadershipLostError is raised in it; {_THEN_THE_WORKER if kills_worker else _CONTINUES}"

    def stop(self, run: Run) -> None:
        """Raise the exception in the task's thread, once."""
        if self._tasks.interrupt(run.request.id):
            logger.warning("interrupted task %s: it did not stop in time", run.request.id)

    def is_dead(self, run: Run) -> bool:
        """Only its end says so."""
        return False

    def clean_up(self, run: Run) -> None:
        """A thread has no process of its own."""

    def refusal(self) -> BaseException:
        """What Celery itself ends such a request with."""
        return _refused()


def _let_go(victims: list[Victim], child: int) -> None:
    """Reap the dead orphans, which are ours as PID 1 of a container; the pool child itself is the pool's to reap."""
    for victim in victims:
        if victim.pid != child:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(victim.pid, os.WNOHANG)
        victim.close()


class WorkerStopper:
    """Any other pool: nothing is known of it, so at the deadline the keeper kills the worker."""

    inside = True

    def __init__(self, *, kills_worker: bool) -> None:
        self.announcement = _THEN_THE_WORKER if kills_worker else _CONTINUES

    def stop(self, run: Run) -> None:
        """Leave it to the keeper."""

    def is_dead(self, run: Run) -> bool:
        """Nothing dies here but the worker as a whole."""
        return False

    def refusal(self) -> BaseException:
        """What Celery itself ends such a request with."""
        return _refused()

    def clean_up(self, run: Run) -> None:
        """A task ends with the worker only."""


def pool_name(worker: WorkController) -> str:
    """Return the name of the worker's pool, as `--pool` has it: prefork, threads, solo, gevent, eventlet, …."""
    name = str(getattr(worker.pool_cls, "__module__", worker.pool_cls)).rpartition(".")[2]
    return "threads" if name == "thread" else name


def stopper_for(
    worker: WorkController, tasks: TasksInside, soon: Callable[[Callable[[], None]], None], *, kills_worker: bool
) -> TaskStopper:
    """Return how the worker's pool stops a task.

    Args:
        worker: the worker; its pool need not have started.
        tasks: the tasks that run in the worker's own process.
        soon: has a function run on the consumer's thread.
        kills_worker: whether the worker is killed where a task cannot be.
    """
    name = pool_name(worker)
    if name == "prefork":
        return PreforkStopper(soon)
    if name in ("gevent", "eventlet"):
        return GreenStopper(lambda: worker.pool, soon, kills_worker=kills_worker)
    if name in ("threads", "solo"):
        return ThreadStopper(tasks, kills_worker=kills_worker)
    return WorkerStopper(kills_worker=kills_worker)


def _refused() -> BaseException:
    error: BaseException = TaskRevokedError()
    return error


def _log_killed(run: Run) -> None:
    logger.warning("killed task %s: it did not stop in time", run.request.id)
