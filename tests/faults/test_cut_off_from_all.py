"""A leader's host is cut off from everything, database and broker: another node takes over, and it comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults import scenes
from tests.faults.hosts import LEASE, NOISE, PROMISED, leads_again, taken_over
from tests.faults.scenes import PATIENCE, PROCESS, QUEUE

if TYPE_CHECKING:
    from tests.faults.conftest import MakeHostCluster
    from tests.faults.hosts import Hosts

pytestmark = [pytest.mark.fault, pytest.mark.postgres]


@pytest.mark.slow
@pytest.mark.parametrize(
    "hosts",
    [
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("rabbitmq", marks=[pytest.mark.rabbitmq, pytest.mark.slow]),
    ],
    indirect=True,
)
def test_a_host_that_is_cut_off_stops_in_time_is_replaced_and_can_lead_again(
    hosts: Hosts, host_cluster: MakeHostCluster
) -> None:
    # A short time-out, so that also RabbitMQ soon knows that the old consumer is gone, and gives its messages away.
    shop = host_cluster({"highlander_broker_timeout": 4.0})
    leader, standby = hosts.leader_and_standby(shop)
    tokens = {singleton: scenes.acts(shop, singleton) for singleton in (QUEUE, PROCESS)}
    cut_at = hosts.cut_off()
    for singleton, token in tokens.items():
        assert shop.leader(singleton, other_than=token, timeout=PATIENCE) is standby
    found = taken_over(shop, tokens, cut_at, "cut off from all")
    assert all(ended < LEASE for ended, _ in found.values())
    assert found[PROCESS][1] < PROMISED + NOISE
    shop.referee().verdict(QUEUE, PROCESS)
    hosts.network.heal()
    leads_again(shop, leader, standby)
