"""A lock session whose connection exists on one side only: the other side knows of its end and could not say so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults import scenes
from tests.faults.hosts import DATABASE, LEADER, LEASE, NOISE, PROMISED, leads_again, taken_over
from tests.faults.scenes import PROCESS, QUEUE

if TYPE_CHECKING:
    from tests.faults.conftest import MakeHostCluster
    from tests.faults.hosts import Hosts

pytestmark = [
    pytest.mark.fault,
    pytest.mark.postgres,
    pytest.mark.redis,
    pytest.mark.parametrize("hosts", ["redis"], indirect=True),
]

STUBBORN = {"highlander_processes": {PROCESS: "tests.arena.shop:stubborn"}}


@pytest.mark.slow
def test_nobody_acts_beside_a_leader_whose_session_ended_at_the_server_without_a_word(
    hosts: Hosts, host_cluster: MakeHostCluster
) -> None:
    shop = host_cluster(STUBBORN)
    leader, standby = hosts.leader_and_standby(shop)
    tokens = {singleton: scenes.acts(shop, singleton) for singleton in (QUEUE, PROCESS)}
    cut_at = hosts.cut(DATABASE)
    assert hosts.network.kill_connections(DATABASE, LEADER) >= 1  # the lock is free at once
    found = taken_over(shop, tokens, cut_at, "half open, dead at the server")
    assert all(ended < LEASE and began < PROMISED + NOISE for ended, began in found.values())
    assert shop.leader(PROCESS) is standby
    shop.referee().verdict(QUEUE, PROCESS)
    hosts.network.heal()
    leads_again(shop, leader, standby)


@pytest.mark.slow
def test_the_server_drops_a_session_whose_client_is_gone_without_a_word(
    hosts: Hosts, host_cluster: MakeHostCluster
) -> None:
    shop = host_cluster(STUBBORN)
    leader, standby = hosts.leader_and_standby(shop)
    tokens = {singleton: scenes.acts(shop, singleton) for singleton in (QUEUE, PROCESS)}
    cut_at = hosts.cut(DATABASE)
    assert hosts.network.kill_connections(LEADER, DATABASE) >= 1
    found = taken_over(shop, tokens, cut_at, "half open, dead at the leader")
    assert all(ended < LEASE and began < PROMISED + NOISE for ended, began in found.values())
    assert shop.leader(PROCESS) is standby
    shop.referee().verdict(QUEUE, PROCESS)
    hosts.network.heal()
    leads_again(shop, leader, standby)
