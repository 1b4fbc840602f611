"""Kinds of queues on the brokers: quorum queues, a single active consumer, prefixed keys in Redis."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest
from kombu import Connection, Exchange, Queue

from tests.faults import scenes
from tests.faults.scenes import PATIENCE, QUEUE
from tests.faults.test_serial_queue import SERIAL, all_ran, never_two_at_once, order_of_first_runs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.arena.cluster import Cluster
    from tests.arena.servers import RabbitMQ
    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres]


@pytest.fixture
def declared(rabbitmq_server: RabbitMQ) -> Iterator[Any]:
    """Declares the queues with these arguments before any worker does; a queue's arguments cannot be changed."""
    with Connection(rabbitmq_server.url()) as connection:

        def declare(**arguments: object) -> None:
            for name in (QUEUE, "celery"):
                connection.channel().queue_delete(name)
                Queue(name, Exchange(name), name, queue_arguments=arguments, durable=True)(connection).declare()

        yield declare
        for name in (QUEUE, "celery"):
            connection.channel().queue_delete(name)


def queues(**arguments: object) -> dict[str, Any]:
    """Celery configuration that declares the queues with these arguments."""
    return {
        "task_queues": {
            name: {"exchange": name, "routing_key": name, "queue_arguments": arguments} for name in ("celery", QUEUE)
        }
    }


def fail_over(cluster: Cluster, number: signal.Signals, *, count: int) -> None:
    leader = cluster.start(*scenes.QUIET, "--highlander-priority", "1", concurrency=2)
    cluster.leader(QUEUE, timeout=PATIENCE)
    standby = cluster.start(*scenes.QUIET, concurrency=2)
    scenes.ready(standby)
    token = cluster.token(QUEUE)
    for each in range(1, count + 1):
        cluster.send(each, seconds=0.05)
    scenes.acts(cluster, QUEUE)
    leader.send(number)
    assert cluster.leader(QUEUE, other_than=token, timeout=PATIENCE) is standby
    all_ran(cluster, range(1, count + 1))
    cluster.referee().verdict(QUEUE)
    assert cluster.referee().concurrent_runs(QUEUE) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_quorum_queue_is_taken_over_like_a_classic_one(
    cluster: MakeCluster, declared: Any, number: signal.Signals
) -> None:
    quorum = {"x-queue-type": "quorum"}
    shop = cluster("rabbitmq", processes={}, conf=queues(**quorum))
    declared(**quorum)
    fail_over(shop, number, count=40)


@pytest.mark.slow
def test_a_quorum_queue_can_be_serial(cluster: MakeCluster, declared: Any) -> None:
    quorum = {"x-queue-type": "quorum"}
    shop = cluster("rabbitmq", processes={}, conf={**queues(**quorum), **SERIAL})
    declared(**quorum)
    fail_over(shop, signal.SIGKILL, count=40)
    never_two_at_once(shop)
    assert order_of_first_runs(shop) == [*range(1, 41)]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_single_active_consumer_is_a_belt_beside_the_braces(
    cluster: MakeCluster, declared: Any, number: signal.Signals
) -> None:
    single = {"x-single-active-consumer": True}
    shop = cluster("rabbitmq", processes={}, conf=queues(**single))
    declared(**single)
    fail_over(shop, number, count=40)


def test_keys_of_redis_may_have_a_prefix(cluster: MakeCluster) -> None:
    shop = cluster("redis", processes={}, conf={"broker_transport_options": {"global_keyprefix": "shop:"}})
    fail_over(shop, signal.SIGKILL, count=40)
