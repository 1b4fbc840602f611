"""A leader without its broker: it steps down from its queues, while what needs no broker goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.arena.proxy import TcpProxy
from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.scenes import PATIENCE, PROCESS, QUEUE, QUIET

if TYPE_CHECKING:
    from tests.arena.servers import Redis
    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres, pytest.mark.redis]

BROKER_TIMEOUT = 1.5


def test_a_leader_that_cannot_reach_the_broker_makes_room_for_one_that_can(
    cluster: MakeCluster, redis_server: Redis
) -> None:
    shop = cluster("redis", conf={"highlander_broker_timeout": BROKER_TIMEOUT})
    proxy = TcpProxy("127.0.0.1", redis_server.port).start()
    try:
        url = redis_server.url().replace(str(redis_server.port), str(proxy.port))
        leader = shop.start(*QUIET, "--highlander-priority", "1", conf={"broker_url": url})
        shop.leader(QUEUE, timeout=PATIENCE)
        scenes.finishes(shop)
        standby = shop.start(*QUIET)
        scenes.ready(standby)
        queue_token, process_token = scenes.acts(shop, QUEUE), scenes.acts(shop, PROCESS)
        proxy.refuse()
        proxy.reset()
        assert scenes.finishes(shop)  # a task that was sent after the cut, so the other one ran it
        assert shop.leader(QUEUE, other_than=queue_token) is standby
        assert "no broker for" in leader.log
        assert shop.leader(PROCESS) is leader  # which needs no broker
        assert scenes.acts(shop, PROCESS) == process_token
        proxy.accept()
        wait_until(lambda: leader.log.count("Connected to redis") > 1, PATIENCE, "the leader's broker to be back")
        scenes.finishes(shop)
        shop.referee().verdict(QUEUE, PROCESS)
    finally:
        proxy.close()


def test_nobody_consumes_while_the_broker_is_away_and_somebody_does_when_it_is_back(
    cluster: MakeCluster, redis_server: Redis
) -> None:
    shop = cluster("redis", conf={"highlander_broker_timeout": BROKER_TIMEOUT})
    workers = [shop.start(*QUIET) for _ in range(2)]
    shop.leader(QUEUE, timeout=PATIENCE)
    scenes.finishes(shop)
    process_token = scenes.acts(shop, PROCESS)
    redis_server.stop()
    try:
        wait_until(lambda: QUEUE not in shop.acting(), PATIENCE, "the queue to be led by nobody")
    finally:
        redis_server.start()
    scenes.finishes(shop)
    assert all(worker.is_running for worker in workers)
    assert scenes.acts(shop, PROCESS) == process_token
    shop.referee().verdict(QUEUE, PROCESS)
