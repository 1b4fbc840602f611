"""Failover time: from the signal to the next worker told to act, and to the first line of its singleton process."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.numbers import Distribution
from celery_highlander.clock import boot_time
from celery_highlander.config import DURATIONS, Settings
from tests.arena.cluster import ROOT, Cluster, Worker
from tests.arena.journal import SUFFIX
from tests.arena.processes import make_directory
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.arena.servers import Postgres, Redis

DEFAULTS = {f"highlander_{name}": getattr(Settings(), name) for name in DURATIONS}
SINGLETON = "ticker"
QUIET = 0.3  # seconds after the signal without a look: looking takes CPU from those who are measured
SETTLE = 1.0  # seconds of rest before each round, after the new worker is up


@dataclass(frozen=True, slots=True)
class Noted:
    """One line of a trace."""

    at: float
    event: str
    name: str
    token: int


def read_trace(path: Path) -> list[Noted]:
    """Return the complete lines of a trace."""
    if not path.exists():
        return []
    complete, _, _ = path.read_text().rpartition("\n")
    fields = [line.split(" ") for line in complete.splitlines()]
    return [Noted(float(at), event, name, int(token)) for at, event, name, token in fields]


@dataclass(slots=True)
class Failovers:
    """What the rounds of one case gave, in seconds."""

    told: list[float] = field(default_factory=list)  # from the signal to the next worker told to act
    told_after_death: list[float] = field(default_factory=list)  # from the death that the old keeper saw
    at_work: list[float] = field(default_factory=list)  # from the signal to the next process' first line
    overlaps: int = 0


def measure(postgres: Postgres, redis: Redis, number: signal.Signals, workers: int, runs: int) -> Failovers:
    """Send `number` to the leader's main process, `runs` times, in a cluster of `workers` workers; default settings."""
    database = postgres.create_database(f"failover_{number.name.lower()}_{workers}")
    directory = make_directory("benchmark")
    trace = directory / "trace"
    conf = {**DEFAULTS, "highlander_processes": {SINGLETON: f"tests.arena.shop:{SINGLETON}"}}
    found = Failovers()
    with Cluster(database.url(), {"broker_url": redis.url()}, directory, conf) as cluster:

        def start() -> Worker:
            return cluster.start("-X", "highlander", "--without-mingle", env={"HIGHLANDER_TRACE": str(trace)})

        for _ in range(workers):
            start()
        cluster.leader(SINGLETON)
        for round_ in range(runs):
            wait_until(partial(can_take_over, cluster, trace, workers + round_), 60, "all workers")
            time.sleep(SETTLE)
            leader, token = cluster.leader(SINGLETON), cluster.token(SINGLETON)
            sent_at = boot_time()
            leader.send(number)
            time.sleep(QUIET)
            told = next_start(trace, token)
            found.told.append(told.at - sent_at)
            died = [noted.at for noted in read_trace(trace) if noted.event == "worker_left" and noted.at > sent_at]
            if number is signal.SIGKILL:
                found.told_after_death.append(told.at - died[0])
            found.at_work.append(_first_line(cluster.journals, told.token) - sent_at)
            leader.wait()
            leader.close()
            cluster.workers.remove(leader)
            start()
        found.overlaps = len(cluster.referee().overlaps(SINGLETON))
    database.drop()
    return found


def can_take_over(cluster: Cluster, trace: Path, started: int) -> bool:
    """Whether each worker is up, and its launcher has the application loaded: before that it does not campaign."""
    launchers = sum(noted.event == "launcher_ready" for noted in read_trace(trace))
    return launchers >= started and all("ready." in worker.log for worker in cluster.workers)


def next_start(trace: Path, token: int) -> Noted:
    """Wait until somebody is told to act under a later token than this; return when that was."""

    def found() -> list[Noted]:
        return [n for n in read_trace(trace) if n.event == "start_work" and n.name == SINGLETON and n.token > token]

    return wait_until(found, 60, "the next leader")[0]


def _first_line(journals: Path, token: int) -> float:
    def found() -> float:
        for path in journals.glob(f"{SINGLETON}.*{SUFFIX}"):
            with path.open() as file:
                instant, _, rest = file.readline().partition(" ")
            if rest.endswith("\n") and int(rest.split(" ")[2]) == token:
                return int(instant) / 1e9
        return 0.0

    return wait_until(found, 30, "the process' first line")


def measure_naive(postgres: Postgres, mode: str, number: signal.Signals, runs: int) -> Distribution:
    """The same with three nodes of `benchmarks.naive`: from the signal to the next node that leads."""
    database = postgres.create_database(f"naive_{mode}")
    trace = make_directory("benchmark") / "trace"
    nodes: dict[int, subprocess.Popen[bytes]] = {}
    found: list[float] = []
    with ExitStack() as stack:

        def start() -> None:
            argv = [sys.executable, "-m", "benchmarks.naive", mode, database.url(None), str(trace)]
            node = subprocess.Popen(argv, cwd=ROOT)
            nodes[node.pid] = node
            stack.callback(node.wait)
            stack.callback(node.kill)

        def noted(event: str) -> list[Noted]:
            return [line for line in read_trace(trace) if line.event == event]

        for _ in range(3):
            start()
        for round_ in range(runs):
            wait_until(_at_least(lambda: noted("up"), 3 + round_), 60, "three nodes")
            leader = wait_until(_at_least(lambda: noted("start_work"), round_ + 1), 60, "a leader")[-1]
            time.sleep(1.0 + (round_ % 7) / 7)  # at any time between two renewals
            sent_at = boot_time()
            nodes[leader.token].send_signal(number)
            found.append(
                wait_until(_at_least(lambda: noted("start_work"), round_ + 2), 60, "the next")[-1].at - sent_at
            )
            nodes[leader.token].wait()
            start()
    database.drop()
    return Distribution.of(found)


def _at_least(look: Callable[[], list[Noted]], count: int) -> Callable[[], list[Noted]]:
    return lambda: found if len(found := look()) >= count else []
