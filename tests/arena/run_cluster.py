"""Workers of the app with singleton tasks, and what is to be seen of their runs; starts them, and judges nothing."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

from celery.backends.base import SyncBackendMixin
from celery.backends.redis import RedisBackend

from tests.arena.cluster import ROOT, Cluster, Worker
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from celery import Celery
    from celery.result import AsyncResult

    from tests.arena.records import TaskRun

PATIENCE = 40.0
"""Seconds that a wait may take on a busy machine before it counts as failed."""

LEASE = 3.0
"""Of the arena's TIMELY settings."""


class PolledRedis(SyncBackendMixin, RedisBackend):
    """Results in Redis for a client that asks for them, and does not listen on a connection that stays open."""

    def on_task_call(self, *_: object) -> None:
        """Nothing is subscribed to."""


class RunCluster(Cluster):
    """Workers of `tests.arena.run_shop`, each with a queue of its own besides the common one.

    Args:
        url: The database.
        broker: Celery configuration with `broker_url` and `result_backend`.
        directory: Where logs and journals go.
        conf: Further configuration.
        pool: The workers' pool.
    """

    app_path: ClassVar[str] = "tests.arena.run_shop"

    def __init__(
        self,
        url: str,
        broker: Mapping[str, Any],
        directory: Path,
        conf: Mapping[str, Any] | None = None,
        pool: str | None = None,
    ) -> None:
        super().__init__(
            url, broker, directory, {"highlander_processes": {}, "highlander_queues": [], **(conf or {})}, pool
        )

    @property
    def app(self) -> Celery:
        """A client, which polls for results."""
        app = super().app
        app.conf.result_backend = f"tests.arena.run_cluster.PolledRedis+{self.conf['result_backend']}"
        return app

    def start_node(self, name: str, *options: str, concurrency: int = 3, **more: Any) -> Worker:
        """Start a worker that takes from the queue `name` and from the common one, and wait until it is ready."""
        quiet = ("--without-mingle", "--without-gossip")
        worker = self.start(*quiet, "-Q", f"celery,{name}", *options, concurrency=concurrency, name=name, **more)
        wait_until(lambda: " ready." in worker.log or not worker.is_running, PATIENCE, f"{name} to be ready")
        assert worker.is_running, worker.log
        return worker

    def start_beat(self, *options: str, **conf: Any) -> Worker:
        """Start an ordinary beat."""
        argv = [sys.executable, "-m", "celery", "-A", self.app_path, "beat", "--pidfile=", "-l", "INFO", *options]
        name = f"beat-{uuid4().hex[:8]}"
        return Worker(name, argv, self.environment(conf), self.directory / f"{name}.log", ROOT)

    def call(self, task: str, *args: Any, on: str = "celery", task_id: str | None = None, **kwargs: Any) -> AsyncResult:
        """Send a task to a node."""
        return self.app.send_task(task, args=args, kwargs=kwargs, queue=on, task_id=task_id or uuid4().hex)

    def begin(self, task: str, key: str, seconds: float = 600.0, how: str = "return", on: str = "celery") -> TaskRun:
        """Send a task that beats, and wait until its run has begun."""
        return self.begun(key, self.call(task, key, seconds, how, on=on).id)

    def runs(self, key: str, task_id: str | None = None) -> list[TaskRun]:
        """The runs so far."""
        return [run for run in self.referee().task_runs(key) if task_id in {None, run.task_id}]

    def begun(self, key: str, task_id: str, count: int = 1) -> TaskRun:
        """Wait until a task has begun for the time `count`; return that run, as far as it has come."""
        runs = wait_until(
            lambda: self.runs(key, task_id)[count - 1 :], PATIENCE, f"run {count} of {task_id} under {key}"
        )
        return runs[0]

    def queue_up(self, task: str, key: str, worker: Worker, seconds: float = 0.05, how: str = "return") -> str:
        """Send a task to a worker, and wait until it has come there."""
        task_id = str(self.call(task, key, seconds, how, on=worker.name).id)
        wait_until(lambda: f"[{task_id}] received" in worker.log, PATIENCE, f"{task_id} at {worker.name}")
        return task_id

    def owed_rows(self) -> list[tuple[Any, ...]]:
        """The rows of runs that are under way, or were not given back."""
        return self.query("select key, holder, name, task_id from highlander_run where key >= 0 or key < -1")

    def nothing_is_held(self) -> None:
        """Wait until no run holds anything."""
        wait_until(lambda: not self.owed_rows(), PATIENCE, "no row of a run to be left")
        held = "select count(*) from pg_locks where locktype = 'advisory' and granted and database = ("
        held += "select oid from pg_database where datname = current_database())"
        wait_until(lambda: self.query(held)[0][0] == 0, PATIENCE, "no lock to be held")

    def script(self, source: str, env: Mapping[str, str] | None = None) -> str:
        """Run a program that has imported everything of the app's module; return what it has printed."""
        argv = [sys.executable, "-c", f"from tests.arena.run_shop import *\n{source}"]
        done = subprocess.run(
            argv,
            env=self.environment(env=env),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()


def seconds_between(earlier: TaskRun, later: TaskRun) -> float:
    """The seconds from the last line of a run to the first one of another."""
    return (later.first - earlier.last) / 1e9


def result_of(result: AsyncResult) -> Any:
    """Wait for the result of a task."""
    return result.get(timeout=PATIENCE, interval=0.01)
