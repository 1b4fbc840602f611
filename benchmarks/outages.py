"""Takeovers that have to wait for the lease, or for the server: from the fault to the next worker told to act."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.failover import DEFAULTS, SETTLE, SINGLETON, can_take_over, next_start
from celery_highlander.clock import boot_time
from celery_highlander.config import Settings
from tests.arena.cluster import Cluster, Worker
from tests.arena.processes import make_directory
from tests.arena.proxy import TcpProxy
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.arena.servers import Postgres, Redis

BOUND = Settings().lease_duration + Settings().poll_interval + 0.5
_HOLDERS = "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and granted group by pid"


@dataclass(slots=True)
class Outages:
    """What the rounds of one case gave."""

    told: list[float] = field(default_factory=list)  # seconds from the fault to the next worker told to act
    overlaps: int = 0


class _Bench:
    """Two workers, each with its own way to the database."""

    def __init__(self, postgres: Postgres, redis: Redis, name: str) -> None:
        self.postgres = postgres
        self.database = postgres.create_database(name)
        directory = make_directory("benchmark")
        self.trace = directory / "trace"
        conf: dict[str, Any] = {**DEFAULTS, "highlander_processes": {SINGLETON: f"tests.arena.shop:{SINGLETON}"}}
        self.cluster = Cluster(self.database.url(), {"broker_url": redis.url()}, directory, conf)
        self.ways: dict[Worker, TcpProxy] = {}
        self.started = 0

    def start(self) -> None:
        """Start one more worker."""
        way = TcpProxy("127.0.0.1", self.postgres.port).start()
        url = self.database.url(port=way.port)
        options = ("-X", "highlander", "--without-mingle")
        environment = {"HIGHLANDER_TRACE": str(self.trace)}
        self.ways[self.cluster.start(*options, conf={"highlander_url": url}, env=environment)] = way
        self.started += 1

    def end(self, worker: Worker) -> None:
        """Remove a worker, whatever state it is in."""
        worker.close()
        self.cluster.workers.remove(worker)
        self.ways.pop(worker).close()

    def ready(self) -> None:
        """Wait until everybody is up, connected and at rest."""
        wait_until(partial(can_take_over, self.cluster, self.trace, self.started), 60, "all workers")
        wait_until(lambda: self.cluster.lock_sessions() == len(self.cluster.workers), 60, "all lock sessions")
        time.sleep(SETTLE)


def _kill_with_the_keeper(bench: _Bench, leader: Worker) -> Callable[[], None]:
    keeper = leader.keeper
    os.kill(keeper, signal.SIGKILL)
    leader.send(signal.SIGKILL)

    def again() -> None:
        bench.end(leader)
        bench.start()

    return again


def _terminate(bench: _Bench, _leader: Worker) -> Callable[[], None]:
    bench.database.execute(_HOLDERS)
    return lambda: None


def _cut(bench: _Bench, leader: Worker) -> Callable[[], None]:
    way = bench.ways[leader]
    way.cut()

    def again() -> None:
        way.heal()
        way.reset()

    return again


def _restart(bench: _Bench, _leader: Worker) -> Callable[[], None]:
    bench.postgres.restart("fast")
    return lambda: None


CASES: dict[str, Callable[[_Bench, Worker], Callable[[], None]]] = {
    "kill -9 of worker and keeper at once": _kill_with_the_keeper,
    "the leader's session terminated": _terminate,
    "the leader cut off from the database (black hole)": _cut,
    "PostgreSQL restarted (fast)": _restart,
}
"""What is done to the leader, which returns how to have two workers again."""


def measure(postgres: Postgres, redis: Redis, case: str, runs: int) -> Outages:
    """Do it `runs` times, in a cluster of two workers with default settings."""
    bench = _Bench(postgres, redis, f"outage_{list(CASES).index(case)}")
    found = Outages()
    with bench.cluster as cluster:
        try:
            bench.start()
            bench.start()
            cluster.leader(SINGLETON)
            for _ in range(runs):
                bench.ready()
                leader, token = cluster.leader(SINGLETON), cluster.token(SINGLETON)
                done_at = boot_time()
                again = CASES[case](bench, leader)
                told = next_start(bench.trace, token)
                found.told.append(told.at - done_at)
                again()
            found.overlaps = len(cluster.referee().overlaps(SINGLETON))
        finally:
            for way in bench.ways.values():
                way.close()
    bench.database.drop()
    return found
