"""From the death of a queue's leader to the first message that the next one runs."""

from __future__ import annotations

import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.failover import DEFAULTS, SETTLE, can_take_over, read_trace
from celery_highlander.clock import boot_time
from tests.arena.cluster import Cluster
from tests.arena.processes import make_directory
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from benchmarks.failover import Noted
    from tests.arena.cluster import Worker
    from tests.arena.servers import Postgres, RabbitMQ, Redis

QUEUE = "highlander"
WORKERS = 2


def measure(postgres: Postgres, broker: Redis | RabbitMQ, runs: int) -> tuple[list[float], int]:
    """Kill the leader, send a message at once, and see when it is begun; `runs` times, default settings.

    Returns:
        Seconds from the death that the old keeper saw to the start of the task, and how many overlaps there were.
    """
    database = postgres.create_database(f"consuming_{broker.purpose}")
    directory = make_directory("benchmark")
    trace = directory / "trace"
    conf: dict[str, Any] = {**DEFAULTS, "highlander_processes": {}}
    found: list[float] = []
    with Cluster(database.url(), {"broker_url": broker.url()}, directory, conf) as cluster:

        def start() -> Worker:
            return cluster.start("-X", QUEUE, "--without-mingle", env={"HIGHLANDER_TRACE": str(trace)})

        for _ in range(WORKERS):
            start()
        for number in range(runs):
            wait_until(partial(can_take_over, cluster, trace, 0), 60, "all workers")
            wait_until(lambda: cluster.lock_sessions() == WORKERS, 60, "all lock sessions")
            leader, token = cluster.leader(QUEUE), cluster.token(QUEUE)
            cluster.send(2 * number, seconds=0.0)  # and it has consumed for a while
            wait_until(lambda token=token: cluster.latest(QUEUE)[1] == token, 60, "a message")  # type: ignore[misc]  # a bound name
            time.sleep(SETTLE)
            sent_at = boot_time()
            leader.send(signal.SIGKILL)
            cluster.send(2 * number + 1, seconds=0.0)
            wait_until(lambda token=token: cluster.latest(QUEUE)[1] > token, 60, "the message")  # type: ignore[misc]  # a bound name
            run = next(run for run in cluster.referee().task_runs(QUEUE) if int(run.owner.token) > token)
            found.append(run.first / 1e9 - _death(read_trace(trace), sent_at))
            leader.wait()
            leader.close()
            cluster.workers.remove(leader)
            start()
        overlaps = len(cluster.referee().overlaps(QUEUE))
    database.drop()
    return found, overlaps


def _death(trace: list[Noted], since: float) -> float:
    return next(noted.at for noted in trace if noted.event == "worker_left" and noted.at > since)
