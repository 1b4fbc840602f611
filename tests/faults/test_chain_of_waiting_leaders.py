"""A chain of unclean ends: a leader is cut off while it works, and its successors end while they still wait for it.

A successor that ends before it has acted has not paid its predecessor's debt: neither its own end in order nor its
shorter lease may let anybody act before the first leader's work is dead.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.arena.journal import now_ns
from tests.arena.proxy import TcpProxy
from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.scenes import PROCESS

if TYPE_CHECKING:
    from tests.arena.cluster import Cluster, Worker
    from tests.arena.servers import Database
    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres]

STUBBORN = {PROCESS: "tests.arena.shop:stubborn"}  # acts for as long as it is let
LONG_LEASE = 8.0
LONG = {
    "highlander_lease_duration": LONG_LEASE,
    "highlander_heartbeat_timeout": 3.0,
    "highlander_drain_timeout": 4.0,
}
"""For the first leader alone: its successors' own leases (3 s) are shorter than what they inherit."""

WAITERS = """
    select t.pid, t.token from highlander_singleton s join highlander_term t on t.key = s.key and t.token = s.token
    where s.name = %s and t.elected_at is null and t.ended_at is null and exists (
        select from pg_locks l where l.locktype = 'advisory' and l.granted
        and (l.classid::bigint << 32) | l.objid::bigint = s.key)"""


def waiter(cluster: Cluster, after: int) -> tuple[Worker, int]:
    """Wait until somebody waits for its predecessor, under a token above `after`; return it, and its token."""

    def found() -> tuple[Worker, int] | None:
        tokens = {pid: token for pid, token in cluster.query(WAITERS, PROCESS) if token > after}
        return next(((worker, tokens[worker.pid]) for worker in cluster.workers if worker.pid in tokens), None)

    return wait_until(found, scenes.PATIENCE, f"a successor that waits, with a token above {after}")


def end(worker: Worker, how: str, postgres: Database) -> None:
    """End a worker, or its term alone."""
    if how == "terminated":
        terminate_holder(postgres)
    elif how == "killed with its keeper":
        os.kill(worker.keeper, signal.SIGKILL)
        worker.send(signal.SIGKILL)
    else:
        worker.send(signal.Signals[how])


def terminate_holder(postgres: Database) -> None:
    postgres.execute(
        "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and granted group by pid"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cut_off", "how"),
    [
        ("frozen", "SIGTERM"),
        pytest.param("cut", "SIGTERM", marks=pytest.mark.slow),
        pytest.param("frozen", "SIGKILL", marks=pytest.mark.slow),
        pytest.param("frozen", "killed with its keeper", marks=pytest.mark.slow),
        pytest.param("frozen", "terminated", marks=pytest.mark.slow),
    ],
)
def test_the_last_of_a_chain_waits_until_the_first_ones_lease_is_over(
    cluster: MakeCluster, postgres: Database, cut_off: str, how: str
) -> None:
    shop = cluster("redis", processes=STUBBORN, conf={"highlander_queues": []})
    with TcpProxy("127.0.0.1", postgres.server.port) as proxy:
        far = {"highlander_url": postgres.url(port=proxy.port), **LONG}
        first = shop.start(*scenes.QUIET, conf=far)
        scenes.acts(shop, PROCESS)
        for _ in range(3):
            shop.start(*scenes.QUIET)
        scenes.ready(*shop.workers)
        token = shop.token(PROCESS)

        if cut_off == "frozen":
            os.kill(first.keeper, signal.SIGSTOP)
            first.send(signal.SIGSTOP)
        else:
            proxy.cut()
        cut_at = now_ns()
        terminate_holder(postgres)
        latest = token
        for _ in range(2):
            successor, latest = waiter(shop, latest)
            end(successor, how, postgres)
        waiter(shop, latest)
        assert (now_ns() - cut_at) / 1e9 < LONG_LEASE - 4.0, "the chain took too long to prove anything"
        scenes.acts(shop, PROCESS, latest)

        shop.referee().verdict(PROCESS)
        spells = shop.referee().spells(PROCESS)
        ended_at = max(spell.last for spell in spells if spell.owner.token == str(token))
        assert (ended_at - cut_at) / 1e9 > LONG_LEASE - 4.0, "the first one's work ended too early to prove anything"
        began_at = min(spell.first for spell in spells if int(spell.owner.token) > token)
        assert (began_at - cut_at) / 1e9 < 2 * LONG_LEASE
