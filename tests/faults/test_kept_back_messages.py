"""Messages that a leader has fetched, and keeps for later: their time has not come, or their rate is limited."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.scenes import PATIENCE, QUEUE

if TYPE_CHECKING:
    from tests.arena.cluster import Cluster
    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres]

POOLS = ["prefork", *(pytest.param(pool, marks=pytest.mark.slow) for pool in ("threads", "gevent", "solo"))]
BROKERS = ["redis", pytest.param("rabbitmq", marks=pytest.mark.slow)]


def all_ran_once(cluster: Cluster, count: int) -> None:
    ids = [str(number) for number in range(1, count + 1)]
    wait_until(lambda: not cluster.referee().missing(ids, QUEUE), 2 * PATIENCE, "every message to be processed")
    scenes.finishes(cluster)
    runs = [run.task_id for run in cluster.referee().task_runs(QUEUE) if run.task_id in ids]
    assert sorted(runs, key=int) == ids
    cluster.referee().verdict(QUEUE)


@pytest.mark.parametrize("broker", BROKERS)
@pytest.mark.parametrize("pool", POOLS)
def test_messages_for_later_run_once_and_on_the_leader_of_then(cluster: MakeCluster, broker: str, pool: str) -> None:
    shop = cluster(broker, processes={}, pool=pool)
    leader = shop.start(*scenes.QUIET, "--highlander-priority", "1")
    shop.leader(QUEUE, timeout=PATIENCE)
    standby = shop.start(*scenes.QUIET)
    scenes.ready(standby)
    token = shop.token(QUEUE)
    for number in range(1, 9):
        shop.app.send_task(
            "tests.arena.shop.work", args=(number, 0.01), queue=QUEUE, task_id=f"task-{number}", countdown=7.0
        )
    wait_until(lambda: leader.log.count("received") >= 4, PATIENCE, "the leader to keep messages")
    scenes.terminate_leaders(shop)
    shop.leader(QUEUE, other_than=token, timeout=PATIENCE)
    all_ran_once(shop, 8)


@pytest.mark.slow
@pytest.mark.parametrize("broker", BROKERS)
@pytest.mark.parametrize("pool", POOLS)
def test_messages_of_a_limited_rate_run_once_after_a_warm_shutdown(
    cluster: MakeCluster, broker: str, pool: str
) -> None:
    annotations = {"tests.arena.shop.work": {"rate_limit": "4/s"}}
    shop = cluster(broker, processes={}, pool=pool, conf={"task_annotations": annotations})
    leader = shop.start(*scenes.QUIET, "--highlander-priority", "1", concurrency=2)
    shop.leader(QUEUE, timeout=PATIENCE)
    standby = shop.start(*scenes.QUIET, concurrency=2)
    scenes.ready(standby)
    for number in range(1, 17):
        shop.send(number)
    wait_until(lambda: leader.log.count("received") >= 3, PATIENCE, "the leader to keep messages")
    leader.send(signal.SIGTERM)
    scenes.nothing_left(leader)
    all_ran_once(shop, 16)


@pytest.mark.slow
def test_messages_of_a_limited_rate_do_not_stay_with_a_worker_that_has_lost_the_queue(cluster: MakeCluster) -> None:
    shop = cluster("rabbitmq", processes={})
    hourly = {"task_annotations": {"tests.arena.shop.work": {"rate_limit": "1/h"}}}
    leader = shop.start(*scenes.QUIET, "--highlander-priority", "1", conf=hourly, concurrency=2)
    shop.leader(QUEUE, timeout=PATIENCE)
    scenes.ready(shop.start(*scenes.QUIET))  # it limits nothing
    for number in range(1, 5):
        shop.send(number)
    wait_until(lambda: leader.log.count("received") >= 3, PATIENCE, "the leader to keep messages")
    os.kill(leader.keeper, signal.SIGKILL)
    all_ran_once(shop, 4)
    assert leader.is_running
