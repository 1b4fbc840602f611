"""Cost at rest of a whole cluster: keepers without workers, and the PostgreSQL that they share.

`python -m benchmarks.nodes NUMBER URL` stands in for the workers of so many keepers.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from typing import Any

from benchmarks.idle import cpu_seconds
from celery_highlander.config import Settings
from celery_highlander.election.keys import lock_key
from celery_highlander.keeper import cell, children
from celery_highlander.keeper.messages import Channel
from tests.arena import processes
from tests.arena.cluster import ROOT
from tests.arena.servers import Postgres
from tests.arena.waiting import wait_until

NAMESPACE = "rest"
SINGLETON = "only"
WARM_UP = 10.0  # seconds: the election, and the looks at who else takes part
START_TIMEOUT = 300.0
_COUNT = "select count(*) from pg_stat_activity where application_name like 'highlander %'"


@dataclass(frozen=True, slots=True)
class Rest:
    """What a cluster costs while nothing happens.

    Attributes:
        nodes: how many there are, all for one singleton.
        keeper_cpu: share of one core of all keepers together.
        server_cpu: share of one core of all PostgreSQL processes together.
        statements: transactions per second in the database; each statement is one.
        connections: to the database, of the nodes.
    """

    nodes: int
    keeper_cpu: float
    server_cpu: float
    statements: float
    connections: int


def measure(nodes: int, seconds: float) -> Rest:
    """Run so many keepers with default settings."""
    with Postgres(settings={"max_connections": nodes + 50}) as postgres:
        database = postgres.create_database("rest")
        argv = [sys.executable, "-m", "benchmarks.nodes", str(nodes), database.url()]
        workers = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL)
        try:
            wait_until(lambda: postgres.execute(_COUNT)[0][0] == nodes, START_TIMEOUT, f"{nodes} lock sessions")
            time.sleep(WARM_UP)
            keepers = processes.descendants(workers.pid)
            servers = [postgres.pid, *processes.descendants(postgres.pid)]
            counted, start = _transactions(postgres), time.monotonic()
            before = _cpu(keepers), _cpu(servers)
            time.sleep(seconds)
            elapsed = time.monotonic() - start
            after = _cpu(keepers), _cpu(servers)
            return Rest(
                nodes=nodes,
                keeper_cpu=(after[0] - before[0]) / elapsed,
                server_cpu=(after[1] - before[1]) / elapsed,
                statements=(_transactions(postgres) - counted) / elapsed,
                connections=int(postgres.execute(_COUNT)[0][0]),
            )
        finally:
            below = processes.descendants(workers.pid)
            for pid in (workers.pid, *below):  # the keepers, too: they would stay to clean up
                processes.send(pid, signal.SIGKILL)
            workers.wait()
            wait_until(lambda: not any(map(processes.is_alive, below)), 60, "the keepers to be gone")


def _cpu(pids: list[int]) -> float:
    return sum(cpu_seconds(pid) for pid in pids if processes.is_alive(pid))


def _transactions(postgres: Postgres) -> int:
    sql = "select xact_commit + xact_rollback from pg_stat_database where datname = 'rest'"
    return int(postgres.execute(sql)[0][0])


def stand_in(nodes: int, url: str) -> None:
    """Start the keepers, have them campaign, and say of all work at once that it has stopped."""
    selector = selectors.DefaultSelector()
    for _ in range(nodes):
        channel = _start_keeper(url)
        selector.register(channel, selectors.EVENT_READ, channel)
    while True:
        for key, _ in selector.select():
            channel = key.data
            for message in channel.receive():
                if message["type"] == "stop":
                    channel.send("work_stopped", name=message["name"], token=message["token"], reason="")


def _start_keeper(url: str) -> Channel:
    settings = Settings()
    ours, theirs = socket.socketpair()
    descriptor = cell.create()
    with theirs:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "celery_highlander.keeper", str(theirs.fileno())],
            pass_fds=(theirs.fileno(), descriptor),
        )
    channel = Channel(ours)
    hello: dict[str, Any] = {
        "pid": os.getpid(),
        "node": uuid.uuid4().hex[:12],
        "worker": f"node{keeper.pid}@rest",
        "cell": descriptor,
        "address": children.new_address(),
        "timing": {name: getattr(settings.timing, name) for name in settings.timing.__dataclass_fields__},
        "worker_timeout": 86400.0,
        "keys": {SINGLETON: lock_key(NAMESPACE, SINGLETON)},
        "namespace": NAMESPACE,
        "schema": "",
        "migrate": True,
        "priority": 0,
        "eligible": True,
        "unmarked": [],
        "target": {"url": url, "connect_args": {}},
        "processes": {},
        "launch": {},
    }
    channel.send("hello", **hello)
    channel.send("campaign", names=[SINGLETON])
    return channel


if __name__ == "__main__":
    stand_in(int(sys.argv[1]), sys.argv[2])
