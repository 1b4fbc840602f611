"""Idle cost of a node: its keeper's memory and CPU, and its statements per second in the database."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.failover import DEFAULTS
from tests.arena.cluster import Cluster, Worker
from tests.arena.processes import make_directory
from tests.arena.servers import Postgres, Redis
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping

_STATEMENT = re.compile(r"^.{0,40}\[(\d+)\] .*?LOG:  (?:statement|execute)")
LOGGING: dict[str, str | int] = {"log_statement": "all", "log_min_duration_statement": -1}
WARM_UP = 15.0  # seconds: elections, and the looks at the members that lead to a spread


@dataclass(frozen=True, slots=True)
class Cost:
    """What one node costs while nothing happens.

    Attributes:
        role: leader (of all singletons) or standby.
        singletons: how many there are.
        rss, pss: bytes of the keeper's process; PSS counts shared pages in proportion.
        cpu: share of one core.
        statements: per second, in its lock session.
        connections: of the node to the database.
    """

    role: str
    singletons: int
    rss: int
    pss: int
    cpu: float
    statements: float
    connections: int


def measure(redis: Redis, singletons: int, seconds: float) -> list[Cost]:
    """Run a leader and a standby of so many singleton queues with default settings; return what each costs."""
    directory = make_directory("benchmark")
    conf = {**DEFAULTS, "highlander_queues": [f"queue-{number}" for number in range(singletons)]}
    with (
        Postgres(settings=LOGGING) as postgres,
        Cluster(postgres.url(), {"broker_url": redis.url(1)}, directory, conf) as cluster,
    ):
        nodes = {}
        for role, priority in (("leader", "1"), ("standby", "0")):
            nodes[role] = cluster.start("--without-mingle", "--highlander-priority", priority)
            wait_until(lambda: len(cluster.acting()) == singletons, 120, f"a leader of {singletons}")
            worker = nodes[role]
            wait_until(lambda worker=worker: "ready." in worker.log, 120, "the worker")  # type: ignore[misc]  # a bound name
        time.sleep(WARM_UP)
        assert {pid for pid, _ in cluster.acting().values()} == {nodes["leader"].pid}
        backends = _backends(cluster)
        before = {role: cpu_seconds(worker.keeper) for role, worker in nodes.items()}
        offset, start = postgres.log.stat().st_size, time.monotonic()
        time.sleep(seconds)
        elapsed = time.monotonic() - start
        with postgres.log.open("rb") as log:
            log.seek(offset)
            counted = Counter(
                int(match[1]) for line in log if (match := _STATEMENT.match(line.decode(errors="replace")))
            )
        return [
            _cost(role, worker, singletons, elapsed, before[role], counted, backends) for role, worker in nodes.items()
        ]


def _cost(
    role: str,
    worker: Worker,
    singletons: int,
    elapsed: float,
    cpu_before: float,
    counted: Mapping[int, int],
    backends: Mapping[int, list[int]],
) -> Cost:
    usage = memory(worker.keeper)
    mine = backends[worker.pid]
    return Cost(
        role=role,
        singletons=singletons,
        rss=usage["Rss"],
        pss=usage["Pss"],
        cpu=(cpu_seconds(worker.keeper) - cpu_before) / elapsed,
        statements=sum(counted.get(pid, 0) for pid in mine) / elapsed,
        connections=len(mine),
    )


def _backends(cluster: Cluster) -> dict[int, list[int]]:
    """The backends of each worker, by its pid: found by the ports of its keeper's connections."""
    ports = {port: pid for pid, port in cluster.query("select pid, client_port from pg_stat_activity")}
    found: dict[int, list[int]] = {}
    for worker in cluster.workers:
        local = _local_ports(worker.keeper) | _local_ports(worker.pid)
        found[worker.pid] = [pid for port, pid in ports.items() if port in local]
    return found


def _local_ports(pid: int) -> set[int]:
    links = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].partition(":")[2], 16) for row in rows if row[9] in inodes}


def cpu_seconds(pid: int) -> float:
    """The CPU time that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> dict[str, int]:
    """Bytes by kind, as smaps_rollup names them: `Rss`, `Pss` and others."""
    rows = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]]
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows}
