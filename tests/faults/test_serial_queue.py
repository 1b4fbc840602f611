"""A queue of concurrency 1 over failovers: its tasks run one after the other, in the order in which they were sent."""

from __future__ import annotations

import itertools
import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.scenes import QUEUE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.arena.cluster import Cluster
    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres]

MESSAGES = 120
SERIAL = {"highlander_queue_concurrency": {QUEUE: 1}}


def order_of_first_runs(cluster: Cluster) -> list[int]:
    """The numbers of the tasks, by the first time that each was finished."""
    finished: dict[int, None] = {}
    for run in sorted(cluster.referee().task_runs(QUEUE), key=lambda run: run.first):
        if run.finished:
            finished.setdefault(int(run.task_id))
    return list(finished)


def all_ran(cluster: Cluster, numbers: Sequence[int]) -> None:
    ids = [str(number) for number in numbers]
    wait_until(lambda: not cluster.referee().missing(ids, QUEUE), 2 * scenes.PATIENCE, "every message to be processed")


def never_two_at_once(cluster: Cluster) -> None:
    runs = sorted((run.first, run.last, run.task_id) for run in cluster.referee().task_runs(QUEUE))
    assert all(end <= start for (_, end, _), (start, _, _) in itertools.pairwise(runs))


@pytest.mark.parametrize("broker", ["redis", pytest.param("rabbitmq", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "pool", ["prefork", *(pytest.param(pool, marks=pytest.mark.slow) for pool in ("threads", "gevent", "solo"))]
)
def test_messages_are_processed_in_order_over_failovers(cluster: MakeCluster, broker: str, pool: str) -> None:
    shop = cluster(broker, processes={}, conf=SERIAL, pool=pool)
    for _ in range(2):
        shop.start(*scenes.QUIET, concurrency=4)
    leader = shop.leader(QUEUE, timeout=scenes.PATIENCE)
    token = shop.token(QUEUE)
    numbers = range(1, MESSAGES + 1)
    for number in numbers:
        shop.send(number, seconds=0.05 if number > 1 else 1.0)  # the first leader dies with the first one in its hands
    for end in (signal.SIGKILL, signal.SIGTERM, None):
        scenes.acts(shop, QUEUE, token - 1)
        if end is None:
            os.kill(leader.keeper, signal.SIGKILL)
        else:
            leader.send(end)
            shop.start(*scenes.QUIET, concurrency=4)
        leader = shop.leader(QUEUE, other_than=token, timeout=scenes.PATIENCE)
        token = shop.token(QUEUE)
    all_ran(shop, numbers)
    shop.referee().verdict(QUEUE)
    never_two_at_once(shop)
    assert order_of_first_runs(shop) == list(numbers)


@pytest.mark.parametrize("broker", ["redis", pytest.param("rabbitmq", marks=pytest.mark.slow)])
def test_a_long_backlog_does_not_keep_the_worker_from_its_other_queues(cluster: MakeCluster, broker: str) -> None:
    shop = cluster(broker, processes={}, conf=SERIAL)
    shop.start(*scenes.QUIET, concurrency=2)
    shop.leader(QUEUE, timeout=scenes.PATIENCE)
    for number in range(1, 51):
        shop.send(number, seconds=0.5)
    scenes.acts(shop, QUEUE)
    scenes.finishes(shop, task="ordinary", queue="celery")
    assert len(order_of_first_runs(shop)) < 50
    never_two_at_once(shop)


@pytest.mark.slow
@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_a_message_for_later_does_not_hold_up_those_behind_it(cluster: MakeCluster, broker: str) -> None:
    shop = cluster(broker, processes={}, conf=SERIAL)
    shop.start(*scenes.QUIET, concurrency=2)
    shop.leader(QUEUE, timeout=scenes.PATIENCE)
    shop.app.send_task("tests.arena.shop.work", args=(1, 0.01), queue=QUEUE, task_id="task-1", countdown=8.0)
    for number in range(2, 12):
        shop.send(number)
    all_ran(shop, range(1, 12))
    assert order_of_first_runs(shop) == [*range(2, 12), 1]
    never_two_at_once(shop)
