"""A link to the database on which everything arrives seconds late: leadership settles elsewhere, and does not flap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.arena.journal import now_ns
from tests.arena.proxy import TcpProxy
from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.hosts import LEASE, NOISE, PROMISED, leads_again, taken_over
from tests.faults.scenes import PATIENCE, PROCESS, QUEUE

if TYPE_CHECKING:
    from tests.arena.cluster import Cluster
    from tests.arena.servers import Database
    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres, pytest.mark.redis]

OBSERVED = 6.0
"""Seconds of slowness in which leadership might flap."""


def terms(shop: Cluster) -> int:
    """How many terms have begun so far, of any singleton."""
    return int(shop.query("select count(*) from highlander_term")[0][0])


@pytest.mark.parametrize(
    "delay",
    [
        pytest.param(2.0, id="2s-beyond-the-heartbeat-timeout", marks=pytest.mark.slow),
        pytest.param(10.0, id="10s-beyond-the-lease", marks=pytest.mark.slow),
    ],
)
def test_leadership_settles_elsewhere_when_the_leaders_link_becomes_slow(
    cluster: MakeCluster, postgres: Database, delay: float
) -> None:
    shop = cluster("redis", processes={PROCESS: "tests.arena.shop:stubborn"})
    with TcpProxy("127.0.0.1", postgres.server.port) as proxy:
        way = postgres.url(port=proxy.port)
        leader, standby = scenes.leader_and_standby(shop, leader_conf={"highlander_url": way})
        tokens = {singleton: scenes.acts(shop, singleton) for singleton in (QUEUE, PROCESS)}
        before, slow_at = terms(shop), now_ns()
        proxy.delay(delay)
        found = taken_over(shop, tokens, slow_at, f"delay of {delay:g} s")
        # What was under way when the delay began still renewed the lease, at most one heartbeat later.
        assert all(ended < LEASE and began < PROMISED + delay + NOISE for ended, began in found.values())
        assert shop.leader(PROCESS) is standby
        wait_until(lambda: now_ns() - slow_at > (delay + OBSERVED) * 1e9, 2 * PATIENCE, "some time of slowness")
        assert shop.leader(PROCESS) is standby
        elections = terms(shop) - before
        print(f"MEASURED delay of {delay:g} s: {elections} terms of two singletons began meanwhile")
        assert elections <= 4
        proxy.heal()
        leads_again(shop, leader, standby)


@pytest.mark.slow
def test_nobody_acts_while_every_link_is_slow_and_somebody_does_afterwards(
    cluster: MakeCluster, postgres: Database
) -> None:
    with TcpProxy("127.0.0.1", postgres.server.port) as proxy:
        shop = cluster("redis", conf={"highlander_url": postgres.url(port=proxy.port)})
        shop.url = postgres.url()
        workers = scenes.leader_and_standby(shop)
        tokens = {singleton: scenes.acts(shop, singleton) for singleton in (QUEUE, PROCESS)}
        before, slow_at = terms(shop), now_ns()
        proxy.delay(2.0)
        wait_until(lambda: now_ns() - slow_at > 3 * LEASE * 1e9, PATIENCE, "three leases of slowness")
        assert not shop.acting()
        assert terms(shop) - before <= 4
        for singleton in (QUEUE, PROCESS):
            assert (max(spell.last for spell in shop.referee().spells(singleton)) - slow_at) / 1e9 < LEASE
        proxy.heal()
        for singleton, token in tokens.items():
            scenes.acts(shop, singleton, token)
        scenes.finishes(shop)
        assert all(worker.is_running for worker in workers)
        shop.referee().verdict(QUEUE, PROCESS)


@pytest.mark.slow
def test_a_late_answer_does_not_make_a_lease_longer(cluster: MakeCluster, postgres: Database) -> None:
    lease = 5.0
    # A lease so tight for these that it is what ends the work, and not the time-out of the next heartbeat.
    tight = {"highlander_lease_duration": lease, "highlander_heartbeat_timeout": 1.8, "highlander_drain_timeout": 2.0}
    shop = cluster("redis", processes={PROCESS: "tests.arena.shop:stubborn"}, conf=tight)
    with TcpProxy("127.0.0.1", postgres.server.port) as proxy:
        way = postgres.url(port=proxy.port)
        _, standby = scenes.leader_and_standby(shop, leader_conf={"highlander_url": way})
        tokens = {singleton: scenes.acts(shop, singleton) for singleton in (QUEUE, PROCESS)}
        proxy.delay(0.9, "to_client")
        heartbeats = shop.heartbeats(PROCESS)
        wait_until(lambda: shop.heartbeats(PROCESS) > heartbeats + 1, PATIENCE, "a heartbeat whose answer is late")
        proxy.cut("to_server")
        found = taken_over(shop, tokens, now_ns(), "late answer, then a cut")
        assert all(ended < lease for ended, _ in found.values())
        assert shop.leader(PROCESS) is standby
        shop.referee().verdict(QUEUE, PROCESS)
