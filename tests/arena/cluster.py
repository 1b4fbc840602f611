"""A cluster of real `celery worker` processes on one database and one broker; it starts and breaks them, and judges nothing."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2

from tests.arena.referee import Referee
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from celery import Celery
    from typing_extensions import Self

ROOT = Path(__file__).resolve().parents[2]

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


def _parents() -> dict[int, int]:
    """Parent of each living process (zombies are dead)."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = entry.read_text().rpartition(")")[2].split()
            if fields[0] not in ("Z", "X"):
                found[int(entry.parent.name)] = int(fields[1])
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
        self._log = log.open("ab")
        self._popen = subprocess.Popen(
            argv, env=dict(env), stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, cwd=cwd
        )
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
    def family(self) -> list[int]:
        """Every living process below the worker, and below its keeper."""
        parents = _parents()
        found: list[int] = []
        queue = [self.pid] if self._keeper is None else [self.pid, self._keeper]
        while queue:
            above = queue.pop()
            below = [pid for pid, parent in parents.items() if parent == above and pid not in found]
            found += below
            queue += below
        return found

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the main process."""
        if self.is_running:
            os.kill(self.pid, number)

    def wait(self, timeout: float = 30.0) -> int:
        """Wait for its end; return the exit code."""
        return self._popen.wait(timeout)

    def close(self) -> None:
        """End it and all it started, whatever state it is in."""
        with contextlib.suppress(AssertionError):
            _ = self.keeper
        family = self.family
        for pid in (self.pid, *([self._keeper] if self._keeper else []), *family):
            if pid == self.pid and not self.is_running:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._popen.wait(10)
        self._log.close()


class Cluster:
    """Workers of the arena's shop on one database and one broker.

    Args:
        url: The database, a SQLAlchemy URL.
        broker: Celery configuration with at least `broker_url`.
        directory: Where logs and journals go.
        conf: Further configuration; `TIMELY` durations hold unless it says otherwise.
    """

    def __init__(
        self, url: str, broker: Mapping[str, Any], directory: Path, conf: Mapping[str, Any] | None = None
    ) -> None:
        self.url = url
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
            *(sys.executable, "-m", "celery", "-A", "tests.arena.shop", "worker"),
            *("-n", f"{name}@arena", "-c", str(concurrency), "-l", "INFO", *options),
        ]
        log = self.directory / f"{name}.log"
        worker = Worker(name, argv, self.environment(conf, env), log, ROOT)
        self.workers.append(worker)
        return worker

    def environment(self, conf: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None) -> dict[str, str]:
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
        argv = [sys.executable, "-m", "celery", "-A", "tests.arena.shop", *words]
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
        """Send one message."""
        self.app.send_task(f"tests.arena.shop.{task}", args=(number, seconds), queue=queue)
