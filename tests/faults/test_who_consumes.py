"""The singleton queue is consumed by the leader and by nobody else, whatever the workers' options say."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.scenes import QUEUE

if TYPE_CHECKING:
    from tests.arena.cluster import Cluster, Worker
    from tests.arena.servers import RabbitMQ, Redis
    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres]


def consumers(cluster: Cluster, *workers: Worker) -> dict[str, list[str]]:
    """What `celery inspect active_queues` says: worker to the queues that it consumes; every worker has to answer."""

    def answers() -> dict[str, list[str]]:
        done = cluster.command("inspect", "active_queues", "--json", "--timeout", "3")
        if done.returncode:
            return {}
        replies = json.loads(done.stdout[done.stdout.index("{") :])
        found = {node.partition("@")[0]: sorted(queue["name"] for queue in reply) for node, reply in replies.items()}
        return found if set(found) == {worker.name for worker in workers} else {}

    return wait_until(answers, 3 * scenes.PATIENCE, f"{len(workers)} workers to answer")


@pytest.mark.parametrize(
    ("broker", "count", "options"),
    [
        ("rabbitmq", 2, ("-X", QUEUE)),
        pytest.param("rabbitmq", 2, (), marks=pytest.mark.slow),
        pytest.param("redis", 2, ("-X", QUEUE), marks=pytest.mark.slow),
        ("redis", 2, ()),
        pytest.param("rabbitmq", 5, ("-X", QUEUE), marks=pytest.mark.slow),
        pytest.param("redis", 5, (), marks=pytest.mark.slow),
    ],
    ids=lambda value: " ".join(value) or "plain" if isinstance(value, tuple) else str(value),
)
def test_only_the_leader_consumes_the_singleton_queue(
    cluster: MakeCluster, broker: str, count: int, options: tuple[str, ...]
) -> None:
    shop = cluster(broker, processes={})
    workers = [shop.start(*options) for _ in range(count)]
    leader = shop.leader(QUEUE, timeout=scenes.PATIENCE)
    scenes.ready(*workers)
    scenes.finishes(shop)
    expected = {worker.name: ["celery", QUEUE] if worker is leader else ["celery"] for worker in workers}
    assert consumers(shop, *workers) == expected
    assert {run.owner.node for run in shop.referee().task_runs(QUEUE)} == {str(leader.pid)}


def test_a_singleton_queue_that_the_application_declares_is_not_consumed_by_a_standby(cluster: MakeCluster) -> None:
    queues = {name: {"exchange": name, "routing_key": name} for name in ("celery", QUEUE)}
    shop = cluster("redis", processes={}, conf={"task_queues": queues})
    workers = [shop.start(*scenes.QUIET) for _ in range(2)]
    leader = shop.leader(QUEUE, timeout=scenes.PATIENCE)
    scenes.ready(*workers)
    scenes.finishes(shop)
    expected = {worker.name: ["celery", QUEUE] if worker is leader else ["celery"] for worker in workers}
    assert consumers(shop, *workers) == expected


def test_worker_that_consumes_one_other_queue_takes_the_singleton_queue_too(cluster: MakeCluster) -> None:
    shop = cluster("rabbitmq", processes={})
    worker = shop.start(*scenes.QUIET, "-Q", "other")
    scenes.ready(worker)
    scenes.finishes(shop)
    assert consumers(shop, worker) == {worker.name: [QUEUE, "other"]}


@pytest.mark.parametrize("broker", ["redis", pytest.param("rabbitmq", marks=pytest.mark.slow)])
def test_a_broker_restart_does_not_make_a_standby_consume(
    cluster: MakeCluster, request: pytest.FixtureRequest, broker: str
) -> None:
    server: Redis | RabbitMQ = request.getfixturevalue(f"{broker}_server")
    shop = cluster(broker, processes={}, conf={"highlander_broker_timeout": 60.0})
    workers = [shop.start(*scenes.QUIET) for _ in range(2)]
    leader = shop.leader(QUEUE, timeout=scenes.PATIENCE)
    scenes.ready(*workers)
    scenes.finishes(shop)
    token = shop.token(QUEUE)
    server.restart()
    scenes.finishes(shop)
    assert shop.leader(QUEUE) is leader
    expected = {worker.name: ["celery", QUEUE] if worker is leader else ["celery"] for worker in workers}
    wait_until(lambda: consumers(shop, *workers) == expected, scenes.PATIENCE, "the leader alone to consume")
    assert {run.owner.token for run in shop.referee().task_runs(QUEUE)} == {str(token)}
    shop.referee().verdict(QUEUE)


@pytest.mark.slow
def test_a_leader_without_its_broker_for_long_steps_down_and_no_standby_keeps_the_queue(
    cluster: MakeCluster, request: pytest.FixtureRequest
) -> None:
    server: Redis = request.getfixturevalue("redis_server")
    shop = cluster("redis", processes={}, conf={"highlander_broker_timeout": 1.0})
    workers = [shop.start(*scenes.QUIET) for _ in range(2)]
    shop.leader(QUEUE, timeout=scenes.PATIENCE)
    scenes.ready(*workers)
    server.stop()
    wait_until(lambda: shop.token(QUEUE) == 0, scenes.PATIENCE, "the leader to step down")
    server.start()
    leader = shop.leader(QUEUE, timeout=scenes.PATIENCE)
    scenes.finishes(shop)
    expected = {worker.name: ["celery", QUEUE] if worker is leader else ["celery"] for worker in workers}
    wait_until(lambda: consumers(shop, *workers) == expected, scenes.PATIENCE, "the leader alone to consume")
    assert all(worker.is_running for worker in workers)
