"""Real `celery worker` processes on one database and one broker; starts and breaks them, and judges nothing."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import kombu.pools
import psycopg2

from tests.arena import processes
from tests.arena.journal import SUFFIX, UNKNOWN
from tests.arena.referee import Referee
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from celery import Celery
    from typing_extensions import Self

ROOT = Path(os.environ.get("HIGHLANDER_ARENA_ROOT") or Path(__file__).resolve().parents[2])
"""Where the workers find the package and the shop; another place for a copy of the package with a planted bug."""

TIMELY: dict[str, Any] = {
    "highlander_lease_duration": 3.0,
    "highlander_heartbeat_interval": 0.4,
    "highlander_heartbeat_timeout": 0.8,
    "highlander_drain_timeout": 1.0,
    "highlander_kill_margin": 0.4,
    "highlander_poll_interval": 0.2,
    "highlander_worker_timeout": 1.5,
}
"""Shorter durations than the defaults, in like proportion, so that tests need not wait so long."""

MARK = "HIGHLANDER_ARENA_WORKER"
"""The entry in the environment by which the processes of one worker are found."""


def chosen_pool() -> str:
    """The pool of all workers whose test asks for no other one."""
    return os.environ.get("HIGHLANDER_ARENA_POOL") or "prefork"


def _with_chosen_driver(url: str) -> str:
    """The URL, for the driver that `HIGHLANDER_ARENA_DRIVER` chooses where a test does not choose another one."""
    driver = os.environ.get("HIGHLANDER_ARENA_DRIVER") or "psycopg2"
    return url.replace("+psycopg2:", f"+{driver}:")


def _parents() -> dict[int, int]:
    """Parent of each living process (zombies are dead)."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = entry.read_text().rpartition(")")[2].split()
            if fields[0] not in ("Z", "X"):
                found[int(entry.parent.name)] = int(fields[1])
    return found


def _with_environment(entry: str) -> list[int]:
    """The living processes that were started with this entry in their environment, whoever their parents are now."""
    found = []
    for pid in _parents():
        with contextlib.suppress(OSError):
            if entry.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def _is(pid: int, word: str) -> bool:
    with contextlib.suppress(OSError):
        return word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


class Worker:
    """One worker, its keeper, and what they started."""

    def __init__(self, name: str, argv: Sequence[str], env: Mapping[str, str], log: Path, cwd: Path) -> None:
        self.name = name
        self.log_path = log
        self._mark = f"{MARK}={log.parent}/{name}"
        # Killed by the kernel when the test run is.
        self._popen = processes.spawn(argv, log=log, env={**env, MARK: f"{log.parent}/{name}"}, cwd=cwd)
        self.pid = self._popen.pid
        self._keeper: int | None = None

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self.log_path.read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        """Whether its main process lives (a stopped one does)."""
        return self._popen.poll() is None

    @property
    def keeper(self) -> int:
        """The keeper's pid; the last known one once the worker is dead."""
        parents = _parents()
        for pid, parent in parents.items():
            if parent == self.pid and _is(pid, "celery_highlander.keeper"):
                self._keeper = pid
        if self._keeper is None:
            raise AssertionError(f"{self.name} has no keeper")
        return self._keeper

    @property
    def children(self) -> list[int]:
        """Its pool children."""
        return [
            pid
            for pid, parent in _parents().items()
            if parent == self.pid and not _is(pid, "celery_highlander.keeper") and _is(pid, "celery")
        ]

    @property
    def singleton_processes(self) -> list[int]:
        """What its keeper runs: the launcher, and the processes that it forked."""
        return processes.descendants(self.keeper)

    @property
    def family(self) -> list[int]:
        """Every living process that it started, orphans too: keeper, launcher, singleton processes, pool children."""
        return [pid for pid in _with_environment(self._mark) if pid != self.pid]

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the main process."""
        if self.is_running:
            os.kill(self.pid, number)

    def wait(self, timeout: float = 30.0) -> int:
        """Wait for its end; return the exit code."""
        return self._popen.wait(timeout)

    def close(self) -> None:
        """End it and all it started, whatever state it is in."""
        if self.is_running:
            self._popen.kill()
            self._popen.wait(10)
        wait_until(self._kill_family, 10, f"the family of {self.name} to be dead")

    def _kill_family(self) -> bool:
        family = self.family
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not family


class Cluster:
    """Workers of the arena's shop on one database and one broker.

    Args:
        url: The database, a SQLAlchemy URL.
        broker: Celery configuration with at least `broker_url`.
        directory: Where logs and journals go.
        conf: Further configuration; `TIMELY` durations hold unless it says otherwise.
        pool: The workers' pool; by default what the environment variable `HIGHLANDER_ARENA_POOL` says, else prefork.
    """

    app_path: ClassVar[str] = "tests.arena.shop"

    def __init__(
        self,
        url: str,
        broker: Mapping[str, Any],
        directory: Path,
        conf: Mapping[str, Any] | None = None,
        pool: str | None = None,
    ) -> None:
        self.url = url = _with_chosen_driver(url)
        self.pool = pool or chosen_pool()
        self.directory = directory
        self.journals = directory / "journals"
        self.journals.mkdir(exist_ok=True)
        self.conf: dict[str, Any] = {**TIMELY, "highlander_url": url, **broker, **(conf or {})}
        self.workers: list[Worker] = []
        self._numbers = itertools.count(1)
        self._app: Celery | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for worker in self.workers:
            worker.close()
        if self._app is not None:
            self._app.close()
            kombu.pools.reset()  # of the whole process: they remember which queues were declared

    def start(
        self,
        *options: str,
        conf: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        concurrency: int = 1,
        prefix: Sequence[str] = (),
        name: str | None = None,
    ) -> Worker:
        """Start a worker; `options` go to `celery worker`, `prefix` before the whole command (a network namespace)."""
        name = name or f"w{next(self._numbers)}"
        argv = [
            *prefix,
            *(sys.executable, "-m", "celery", "-A", self.app_path, "worker"),
            *("-n", f"{name}@arena", "-c", str(concurrency), "-l", "INFO", "-P", self.pool, *options),
        ]
        log = self.directory / f"{name}.log"
        worker = Worker(name, argv, self.environment(conf, env), log, ROOT)
        self.workers.append(worker)
        return worker

    def environment(
        self, conf: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """The environment of a worker or a command."""
        return {
            **os.environ,
            "HIGHLANDER_ARENA_CONF": json.dumps({**self.conf, **(conf or {})}),
            "HIGHLANDER_ARENA_JOURNALS": str(self.journals),
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
            **(env or {}),
        }

    def command(self, *words: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run `celery -A … <words>` and return how it ended."""
        argv = [sys.executable, "-m", "celery", "-A", self.app_path, *words]
        return subprocess.run(
            argv, env=self.environment(), cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
        )

    # -- looking -------------------------------------------------------------------------------------------------------

    def query(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Ask the database, over a connection of its own."""
        connection = psycopg2.connect(self.url.replace("+psycopg2", "").replace("+psycopg", ""), connect_timeout=5)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql, parameters or None)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def acting(self) -> dict[str, tuple[int, int]]:
        """Who acts, as the database says: singleton to (pid of the worker, token), of terms that hold their lock."""
        with contextlib.suppress(psycopg2.Error):
            rows = self.query(
                """select s.name, t.pid, t.token from highlander_singleton s
                join highlander_term t on t.key = s.key and t.token = s.token
                where t.elected_at is not null and t.ended_at is null and exists (
                    select from pg_locks l where l.locktype = 'advisory' and l.granted
                    and (l.classid::bigint << 32) | l.objid::bigint = s.key)"""
            )
            return {name: (pid, token) for name, pid, token in rows}
        return {}

    def leader(self, singleton: str, other_than: int | None = None, timeout: float = 30.0) -> Worker:
        """Wait until a worker (of another term than token `other_than`) acts for `singleton`, and return it."""

        def found() -> Worker | None:
            pid, token = self.acting().get(singleton, (0, 0))
            if token == other_than:
                return None
            return next((worker for worker in self.workers if worker.pid == pid and worker.is_running), None)

        return wait_until(found, timeout, f"a leader of {singleton!r}")

    def token(self, singleton: str) -> int:
        """The token of the term that acts for `singleton`; 0 if none does."""
        return self.acting().get(singleton, (0, 0))[1]

    def latest(self, singleton: str) -> tuple[str, int]:
        """Node and token of the last line that anybody wrote for `singleton`; ("", 0) if nobody did. Cheap."""
        last = (0, "", 0)
        for path in self.journals.glob(f"{singleton}.*{SUFFIX}"):
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - 512))
                lines = file.read().rpartition(b"\n")[0].splitlines()
            if lines:
                instant, _, node, token, _ = lines[-1].decode().split(" ")
                last = max(last, (int(instant), node, 0 if token == UNKNOWN else int(token)))
        return last[1:]

    def heartbeats(self, singleton: str) -> int:
        """How often the present term of `singleton` was renewed."""
        return int(self.query("select heartbeats from highlander_singleton where name = %s", singleton)[0][0])

    def lock_sessions(self) -> int:
        """How many nodes are connected to the database."""
        sql = (
            "select count(*) from pg_stat_activity"
            " where datname = current_database() and application_name like 'highlander %'"
        )
        return int(self.query(sql)[0][0])

    def referee(self) -> Referee:
        """The judge of what was written so far."""
        return Referee(self.journals)

    @property
    def app(self) -> Celery:
        """A client of the cluster's app, to send tasks with."""
        if self._app is None:
            from celery import Celery

            self._app = Celery("arena-client")
            self._app.conf.update({key: value for key, value in self.conf.items() if not key.startswith("highlander")})
        return self._app

    def send(self, number: int, *, seconds: float = 0.01, queue: str = "highlander", task: str = "work") -> None:
        """Send one message; logs show it as `task-<number>`."""
        name = f"tests.arena.shop.{task}"
        self.app.send_task(name, args=(number, seconds), queue=queue, task_id=f"task-{number}")
