"""A task of a singleton queue has started processes that do not want to die, and is killed with them running.

They write under the name of their worker, so the referee sees every one that outlives the term. A program that an
ordinary task left running on purpose, in the same pool child, is not touched.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.arena import families, processes
from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.scenes import QUEUE

if TYPE_CHECKING:
    from tests.arena.cluster import Cluster, Worker
    from tests.faults.conftest import MakeCluster

pytestmark = [
    pytest.mark.fault,
    pytest.mark.postgres,
    pytest.mark.pool("prefork", reason="it has no pool children"),
    pytest.mark.skipif("sys.platform != 'linux'", reason="what a task has started is found on Linux only"),
]

FAMILY = 4  # the pool child, and three that its task has started


def parent_at_work(shop: Cluster, *options: str) -> tuple[Worker, set[int]]:
    """Start a leader whose only pool child runs a singleton's task, an ordinary one that leaves a program, a parent."""
    leader = shop.start(*scenes.QUIET, "--highlander-priority", "1", *options)
    shop.leader(QUEUE, timeout=scenes.PATIENCE)
    scenes.finishes(shop)
    shop.send(1, queue="celery", task="leaves_a_program")
    wait_until(lambda: families.left_running(shop.journals), scenes.PATIENCE, "a program that was left running")
    scenes.ready(leader, shop.start(*scenes.QUIET))
    shop.send(2, seconds=600, task="parent")
    wait_until(lambda: len(families.writers(shop.journals, QUEUE)) >= FAMILY, scenes.PATIENCE, "a family at work")
    return leader, families.writers(shop.journals, QUEUE)


def is_taken_over(shop: Cluster, old: set[int], token: int, *, is_given_back: bool = True) -> None:
    """Wait for work under a later term; by then all of `old` has to be dead, and what was left on purpose is not."""
    wait_until(lambda: shop.token(QUEUE) > token, scenes.PATIENCE, "another term")
    assert [pid for pid in old if processes.is_alive(pid)] == []
    if is_given_back:
        scenes.wait_for_runs(shop, "2", 2)
    else:
        for number in range(101, 121):  # more than the frozen worker's share, for the broker does not see that it is
            shop.send(number)
        scenes.acts(shop, QUEUE, token)
    shop.referee().verdict(QUEUE)
    assert all(map(processes.is_alive, families.left_running(shop.journals)))


def test_they_are_dead_when_the_drain_of_a_lost_term_ends(cluster: MakeCluster) -> None:
    shop = cluster("rabbitmq", processes={})
    _, old = parent_at_work(shop)
    token = shop.token(QUEUE)
    scenes.terminate_leaders(shop)
    is_taken_over(shop, old, token)


def test_they_are_dead_when_the_worker_was_killed(cluster: MakeCluster) -> None:
    shop = cluster("rabbitmq", processes={})
    leader, old = parent_at_work(shop)
    token = shop.token(QUEUE)
    leader.send(signal.SIGKILL)
    is_taken_over(shop, old, token)


@pytest.mark.slow
def test_they_are_dead_when_the_keeper_was_killed(cluster: MakeCluster) -> None:
    shop = cluster("rabbitmq", processes={})
    leader, old = parent_at_work(shop)
    token = shop.token(QUEUE)
    os.kill(leader.keeper, signal.SIGKILL)
    is_taken_over(shop, old, token)
    assert leader.is_running


@pytest.mark.slow
def test_they_are_dead_when_the_node_is_frozen_as_a_whole(cluster: MakeCluster) -> None:
    shop = cluster("rabbitmq", processes={})
    leader, old = parent_at_work(shop)
    token = shop.token(QUEUE)
    os.kill(leader.keeper, signal.SIGSTOP)
    leader.send(signal.SIGSTOP)
    is_taken_over(shop, old, token, is_given_back=False)


def test_they_are_dead_when_the_task_runs_again_because_its_child_was_killed(cluster: MakeCluster) -> None:
    shop = cluster("rabbitmq", processes={})
    leader, old = parent_at_work(shop)
    (child,) = leader.children
    os.kill(child, signal.SIGKILL)
    scenes.wait_for_runs(shop, "2", 2)
    assert [pid for pid in old if processes.is_alive(pid)] == []
    assert all(map(processes.is_alive, families.left_running(shop.journals)))
