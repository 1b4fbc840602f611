"""Packets between a leader and the broker vanish, and no end hears of it: another node takes over the queues.

What needs no broker stays where it is, and the worker that was cut off works again afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.hosts import BROKER, DRAIN, NOISE, POLL, taken_over
from tests.faults.scenes import PATIENCE, PROCESS, QUEUE

if TYPE_CHECKING:
    from tests.faults.conftest import MakeHostCluster
    from tests.faults.hosts import Hosts, Way

pytestmark = [pytest.mark.fault, pytest.mark.postgres]

BROKER_TIMEOUT = 3.0


@pytest.mark.parametrize(
    ("hosts", "way", "busy"),
    [
        pytest.param("redis", "both", True, id="redis-both-busy", marks=[pytest.mark.redis, pytest.mark.slow]),
        pytest.param("redis", "both", False, id="redis-both-idle", marks=[pytest.mark.redis, pytest.mark.slow]),
        pytest.param("redis", "out", False, id="redis-out-idle", marks=[pytest.mark.redis, pytest.mark.slow]),
        pytest.param("redis", "in", True, id="redis-in-busy", marks=[pytest.mark.redis, pytest.mark.slow]),
        pytest.param(
            "rabbitmq", "both", False, id="rabbitmq-both-idle", marks=[pytest.mark.rabbitmq, pytest.mark.slow]
        ),
        pytest.param("rabbitmq", "both", True, id="rabbitmq-both-busy", marks=[pytest.mark.rabbitmq, pytest.mark.slow]),
        pytest.param("rabbitmq", "out", True, id="rabbitmq-out-busy", marks=[pytest.mark.rabbitmq, pytest.mark.slow]),
        pytest.param("rabbitmq", "in", False, id="rabbitmq-in-idle", marks=[pytest.mark.rabbitmq, pytest.mark.slow]),
    ],
    indirect=["hosts"],
)
def test_another_node_takes_the_queues_over_when_packets_to_the_broker_are_dropped(
    hosts: Hosts, host_cluster: MakeHostCluster, way: Way, *, busy: bool
) -> None:
    shop = host_cluster({"highlander_broker_timeout": BROKER_TIMEOUT})
    leader, standby = hosts.leader_and_standby(shop, task_seconds=600.0 if busy else 0.01)
    scenes.finishes(shop)  # in the second child of the busy one
    token, process_token = scenes.acts(shop, QUEUE), scenes.acts(shop, PROCESS)
    cut_at = hosts.cut(BROKER, way)
    wait_until(lambda: shop.token(QUEUE) > token, 2 * PATIENCE, "another leader of the queue")
    shop.send(1)
    scenes.ended(shop, 1)
    [(_, began)] = taken_over(shop, {QUEUE: token}, cut_at, f"broker cut, {way}").values()
    assert began < BROKER_TIMEOUT + DRAIN + POLL + 1.0 + NOISE
    assert shop.leader(QUEUE) is standby
    assert shop.token(PROCESS) == process_token  # which needs no broker
    hosts.network.heal()
    token = shop.token(QUEUE)
    standby.close()
    # It leads again when its broker is back: over a new connection, or, after a short cut, over the old one.
    assert shop.leader(QUEUE, other_than=token, timeout=2 * PATIENCE) is leader
    scenes.finishes(shop)
    assert scenes.acts(shop, PROCESS) == process_token
    shop.referee().verdict(QUEUE, PROCESS)
