"""What the fault tests have in common: a leader at work beside a standby, and what must hold after a fault."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from tests.arena import processes
from tests.arena.journal import now_ns
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.arena.cluster import Cluster, Worker

QUEUE = "highlander"
PROCESS = "ticker"
QUIET = ("--without-mingle", "--without-gossip")
"""Options for a quick start."""

PATIENCE = 40.0
"""Seconds that a wait may take on a busy machine before it counts as failed."""

_numbers = itertools.count(1)


def leader_and_standby(
    cluster: Cluster,
    *,
    task_seconds: float = 600.0,
    leader_conf: Mapping[str, Any] | None = None,
    leader_env: Mapping[str, str] | None = None,
    standby_env: Mapping[str, str] | None = None,
) -> tuple[Worker, Worker]:
    """Start two workers; the first leads the queue and the process, and runs a task of the queue for that long.

    It has priority, so that the two singletons are not spread over both.
    """
    options = (*QUIET, "-X", QUEUE)
    leader = cluster.start(*options, "--highlander-priority", "1", conf=leader_conf, env=leader_env, concurrency=2)
    cluster.leader(PROCESS, timeout=PATIENCE)
    standby = cluster.start(*options, env=standby_env, concurrency=2)
    cluster.leader(QUEUE, timeout=PATIENCE)
    ready(standby)
    wait_until(lambda: "processes can run here" in standby.log, PATIENCE, "the standby to be able to run processes")
    cluster.send(0, seconds=task_seconds)
    for singleton in (QUEUE, PROCESS):
        acts(cluster, singleton)
    return leader, standby


def ready(*workers: Worker) -> None:
    """Wait until workers have started, and have their lock sessions."""
    for worker in workers:
        wait_until(
            lambda worker=worker: " ready." in worker.log and "lock session open" in worker.log,  # type: ignore[misc]
            PATIENCE,
            f"{worker.name} to be ready",
        )


def acts(cluster: Cluster, singleton: str, after: int = 0) -> int:
    """Wait until work of `singleton` was seen under a token greater than `after`; return the token."""

    def token() -> int:
        latest = cluster.latest(singleton)[1]
        return latest if latest > after else 0

    return wait_until(token, PATIENCE, f"{singleton!r} to be at work with a token above {after}")


def finishes(cluster: Cluster, *, task: str = "work", queue: str = QUEUE) -> str:
    """Send a short task and wait until it has run; a positive event at which an absence can be asserted."""
    number = 1_000_000 + next(_numbers)
    cluster.send(number, task=task, queue=queue)
    return ended(cluster, number, journal=QUEUE if task == "work" else task)


def goes_on(cluster: Cluster) -> str:
    """See the queue at work from now on; return the node. A pool that runs one task at a time goes on with that one."""
    return finishes(cluster) if cluster.pool != "solo" else beats_on(cluster, QUEUE)


def beats_on(cluster: Cluster, singleton: str) -> str:
    """Wait until work of `singleton` was seen at a later instant than now; return the node."""
    now = now_ns()

    def node() -> str:
        spells = cluster.referee().spells(singleton)
        return next((spell.owner.node for spell in spells if spell.last > now), "")

    return wait_until(node, PATIENCE, f"{singleton!r} to be still at work")


def ended(cluster: Cluster, number: int, journal: str = QUEUE) -> str:
    """Wait until the task `number` has run to its end; return the node that ran it."""

    def node() -> str:
        runs = cluster.referee().task_runs(journal)
        return next((run.owner.node for run in runs if run.task_id == str(number) and run.finished), "")

    return wait_until(node, PATIENCE, f"task {number} to have run")


def wait_for_runs(cluster: Cluster, task_id: str, count: int) -> None:
    """Wait until a task has been started that many times."""

    def runs() -> int:
        return sum(run.task_id == task_id for run in cluster.referee().task_runs())

    wait_until(lambda: runs() >= count, PATIENCE, f"{count} runs of task {task_id}")


def all_dead(pids: Iterable[int]) -> None:
    """Wait until none of these processes lives."""
    pids = list(pids)
    wait_until(lambda: not any(map(processes.is_alive, pids)), PATIENCE, f"all of {pids} to be dead")


def terminate_leaders(cluster: Cluster) -> None:
    """Have the server end the lock sessions of all that lead something."""
    cluster.query("select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and granted group by pid")


def nothing_left(worker: Worker) -> None:
    """Wait until a worker and everything that it started is dead."""
    wait_until(lambda: not worker.is_running, PATIENCE, f"{worker.name} to end")
    wait_until(lambda: not worker.family, PATIENCE, f"nothing of {worker.name} to be left")


def gap(cluster: Cluster, singleton: str, token: int) -> float:
    """The seconds from the last line under `token` to the first one under a later token."""
    spells = cluster.referee().spells(singleton)
    last = max(spell.last for spell in spells if spell.owner.token == str(token))
    first = min(spell.first for spell in spells if int(spell.owner.token) > token)
    return (first - last) / 1e9
