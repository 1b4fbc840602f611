"""Packets between a leader and the database vanish, in both directions or in one, and no end hears of it.

Work stops before the lease ends, another node takes over, and the one that was cut off can lead again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.hosts import DATABASE, LEASE, NOISE, PROMISED, leads_again, taken_over
from tests.faults.scenes import PROCESS, QUEUE

if TYPE_CHECKING:
    from tests.faults.conftest import MakeHostCluster
    from tests.faults.hosts import Hosts, Way

pytestmark = [
    pytest.mark.fault,
    pytest.mark.postgres,
    pytest.mark.redis,
    pytest.mark.parametrize("hosts", ["redis"], indirect=True),
]


@pytest.mark.parametrize(
    ("way", "process"),
    [
        pytest.param("both", "stubborn", id="both"),
        pytest.param("out", "stubborn", id="from-the-leader", marks=pytest.mark.slow),
        pytest.param("in", "stubborn", id="to-the-leader", marks=pytest.mark.slow),
        pytest.param("both", "slow_to_stop", id="both-slow-to-stop", marks=pytest.mark.slow),
    ],
)
def test_work_is_dead_before_the_lease_ends_and_another_node_takes_over_when_packets_are_dropped(
    hosts: Hosts, host_cluster: MakeHostCluster, way: Way, process: str
) -> None:
    shop = host_cluster({"highlander_processes": {PROCESS: f"tests.arena.shop:{process}"}})
    leader, standby = hosts.leader_and_standby(shop)
    tokens = {singleton: shop.token(singleton) for singleton in (QUEUE, PROCESS)}
    cut_at = hosts.cut(DATABASE, way)
    for ended, began in taken_over(shop, tokens, cut_at, f"database cut, {way}").values():
        assert ended < LEASE
        assert began < PROMISED + NOISE
    assert shop.leader(PROCESS) is standby
    shop.referee().verdict(QUEUE, PROCESS)
    hosts.network.heal()
    leads_again(shop, leader, standby)
