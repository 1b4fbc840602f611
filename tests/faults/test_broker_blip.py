"""The connection to the broker breaks for a moment while a task runs: the broker delivers its message once more."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.arena.proxy import TcpProxy
from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.scenes import PATIENCE, QUEUE, QUIET

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.arena.servers import RabbitMQ, Redis
    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres]


@pytest.fixture
def proxy(request: pytest.FixtureRequest, broker: str) -> Iterator[TcpProxy]:
    server: Redis | RabbitMQ = request.getfixturevalue(f"{broker}_server")
    with TcpProxy("127.0.0.1", server.port) as proxy:
        yield proxy


def reconnected(log: str) -> int:
    return log.count("Connected to ") - log.count("pidbox: Connected to ")


@pytest.mark.slow
@pytest.mark.parametrize("broker", ["rabbitmq", pytest.param("redis", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "pool", ["prefork", *(pytest.param(pool, marks=pytest.mark.slow) for pool in ("threads", "gevent"))]
)
def test_a_message_delivered_again_does_not_run_beside_itself_nor_after_it_has_ended(
    cluster: MakeCluster, request: pytest.FixtureRequest, proxy: TcpProxy, broker: str, pool: str
) -> None:
    server: Redis | RabbitMQ = request.getfixturevalue(f"{broker}_server")
    shop = cluster(broker, processes={}, pool=pool)
    url = server.url().replace(str(server.port), str(proxy.port))
    leader = shop.start(*QUIET, conf={"broker_url": url}, concurrency=4)
    shop.leader(QUEUE, timeout=PATIENCE)
    shop.send(1, seconds=6.0)
    scenes.wait_for_runs(shop, "1", 1)
    proxy.reset()
    wait_until(lambda: reconnected(leader.log) > 1, PATIENCE, "the leader to be connected again")
    scenes.finishes(shop)
    scenes.ended(shop, 1)
    wait_until(lambda: "has run here already" in leader.log, PATIENCE, "the second delivery to be acknowledged")
    leader.send(signal.SIGTERM)
    scenes.nothing_left(leader)
    shop.start(*QUIET)
    scenes.finishes(shop)
    assert [run.finished for run in shop.referee().task_runs(QUEUE) if run.task_id == "1"] == [True]


@pytest.mark.parametrize("broker", ["rabbitmq", pytest.param("redis", marks=pytest.mark.slow)])
def test_a_task_that_a_lost_connection_left_running_is_dead_before_the_lease_ends(
    cluster: MakeCluster, request: pytest.FixtureRequest, proxy: TcpProxy, broker: str
) -> None:
    server: Redis | RabbitMQ = request.getfixturevalue(f"{broker}_server")
    shop = cluster(broker, processes={})
    url = server.url().replace(str(server.port), str(proxy.port))
    leader = shop.start(*QUIET, "--highlander-priority", "1", conf={"broker_url": url}, concurrency=4)
    shop.leader(QUEUE, timeout=PATIENCE)
    standby = shop.start(*QUIET)
    scenes.ready(standby)
    shop.send(1, seconds=600.0)
    token = scenes.acts(shop, QUEUE)
    proxy.reset()
    wait_until(lambda: reconnected(leader.log) > 1, PATIENCE, "the leader to be connected again")
    scenes.finishes(shop)
    scenes.terminate_leaders(shop)
    scenes.acts(shop, QUEUE, token)
    scenes.finishes(shop)
    shop.referee().verdict(QUEUE)
    assert shop.referee().concurrent_runs(QUEUE) == []
