"""A failover every few seconds, for a long time: nothing may pile up.

`HIGHLANDER_SOAK_SECONDS` and `HIGHLANDER_SOAK_INTERVAL` say for how long, and how often.
"""

from __future__ import annotations

import os
import signal
import statistics
from typing import TYPE_CHECKING

import pytest

from celery_highlander.store.terms import KEPT_TERMS
from tests.arena.journal import now_ns
from tests.arena.vitals import Vitals, of_process
from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.scenes import PROCESS, QUEUE

if TYPE_CHECKING:
    from tests.arena.cluster import Cluster, Worker
    from tests.arena.servers import Database
    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres, pytest.mark.slow]

SECONDS = float(os.environ.get("HIGHLANDER_SOAK_SECONDS", "240"))
INTERVAL = float(os.environ.get("HIGHLANDER_SOAK_INTERVAL", "5"))
KEEPER_EVERY = 5  # failovers, of which one is the death of a keeper
STROLLER = {PROCESS: "tests.arena.shop:stroller"}  # fewer lines to judge

ALLOWED = {
    "memory": 1536.0,  # kB
    "descriptors": 3.5,  # a keeper that leads has three more, and a sample shows the one or the other
    "threads": 0.5,
    "sessions": 0.5,
    "rows": 4.0,
    "bytes": 24 * 1024.0,
}
"""What may be there more in the last quarter than in the second one."""

MORE_LOG = 1.5
"""How many times as much may be logged in the last quarter as in the second one."""


def fill_history(postgres: Database) -> None:
    """As many old terms as are kept: from here on, each new term is one too many."""
    postgres.execute(
        "insert into highlander_term (key, token, node, worker, pid, lease, elected_at, stopped_at, ended_at, reason)"
        " select key, number, 'abcdef123456', 'old@arena', 4711, 3.0, now(), now(), now(), 'worker shutting down'"
        " from highlander_singleton, generate_series(1, %s) number",
        KEPT_TERMS,
    )


def look(vitals: Vitals, cluster: Cluster, postgres: Database, steady: dict[str, int]) -> None:
    """Note how everything is now; `steady` has the processes that never have to die, by name."""
    for name, pid in steady.items():
        vitals.note(name, of_process(pid))
    for worker in cluster.workers:
        vitals.note(worker.name, {"log": float(worker.log_path.stat().st_size)})
    vitals.note("database", {"sessions": float(cluster.lock_sessions())})
    for table in ("highlander_term", "highlander_singleton"):
        ((size, rows),) = postgres.execute(f"select pg_total_relation_size('{table}'), count(*) from {table}")
        vitals.note(table, {"bytes": float(size), "rows": float(rows)})


def fail_over(cluster: Cluster, number: int, mortal: Worker) -> float:
    """End the terms of one node, the process' leader mostly; return the seconds until the process ran again."""
    token = scenes.acts(cluster, PROCESS)
    leader = cluster.leader(PROCESS)
    began_at = now_ns()
    if leader is mortal and number % KEEPER_EVERY == 0:
        os.kill(mortal.keeper, signal.SIGKILL)
    else:
        cluster.query(
            "select pg_terminate_backend(a.pid) from pg_stat_activity a join highlander_term t"
            " on a.application_name like '%%' || t.node || '%%' where t.token = %s",
            token,
        )
    scenes.acts(cluster, PROCESS, token)
    cluster.send(number, task="work", queue=QUEUE)
    cluster.send(number, task="ordinary", queue="celery")
    return (now_ns() - began_at) / 1e9


@pytest.mark.timeout(SECONDS + 300)
def test_nothing_grows_over_many_failovers(cluster: MakeCluster, postgres: Database) -> None:
    shop = cluster("redis", processes=STROLLER)
    workers = [shop.start(*scenes.QUIET, "-X", QUEUE) for _ in range(3)]
    scenes.acts(shop, PROCESS)
    scenes.ready(*workers)
    scenes.finishes(shop)
    fill_history(postgres)
    mortal = workers[-1]
    steady = {f"{worker.name} main": worker.pid for worker in workers}
    for worker in workers[:-1]:
        steady[f"{worker.name} keeper"] = worker.keeper
        steady[f"{worker.name} launcher"] = min(worker.singleton_processes)

    vitals = Vitals()
    gaps: list[float] = []
    while (now_ns() - vitals.began_at) / 1e9 < SECONDS:
        gaps.append(fail_over(shop, len(gaps) + 1, mortal))
        due = vitals.began_at + len(gaps) * INTERVAL * 1e9
        wait_until(lambda due=due: now_ns() >= due, INTERVAL + 60, "the time of the next failover")  # type: ignore[misc]
        look(vitals, shop, postgres, steady)

    growth = vitals.growth()
    report(gaps, growth)
    shop.referee().verdict(PROCESS)
    assert not shop.referee().missing(map(str, range(1, len(gaps))), QUEUE)
    assert all(worker.is_running for worker in workers)
    assert all(of_process(pid) for pid in steady.values())
    for (of, what), (second, last) in growth.items():
        if what != "log":
            assert last - second <= ALLOWED[what], (
                f"{what} of {of}: {second:g} in the second quarter, {last:g} in the last"
            )
    for worker in workers:
        second, last = (logged(vitals, worker, number) for number in (2, 4))
        assert last <= second * MORE_LOG, f"{worker.name} logs more and more: from {second:g} to {last:g} bytes"


def logged(vitals: Vitals, worker: Worker, quarter: int) -> float:
    """How many bytes a worker logged in one quarter."""
    sizes = vitals.series[worker.name, "log"].quarter(quarter, vitals.began_at, now_ns())
    return sizes[-1] - sizes[0]


def report(gaps: list[float], growth: dict[tuple[str, str], tuple[float, float]]) -> None:
    """Print the figures."""
    print(f"{len(gaps)} failovers; median {statistics.median(gaps):.3f} s, longest {max(gaps):.3f} s")
    for (of, what), (second, last) in sorted(growth.items()):
        print(f"{of:22} {what:12} {second:12.1f} -> {last:12.1f}  ({last - second:+.1f})")
