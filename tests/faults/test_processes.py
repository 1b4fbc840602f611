"""Singleton processes that fail or do not stop, and pool children that come and go: nobody acts too long or is left."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.scenes import PROCESS, QUEUE

if TYPE_CHECKING:
    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres]

LEASE = 3.0  # of the arena's TIMELY settings
FAILING = {PROCESS: "tests.arena.shop:failing"}
STUBBORN = {PROCESS: "tests.arena.shop:stubborn"}


def test_a_process_that_keeps_failing_on_one_node_is_handed_on_to_another(cluster: MakeCluster) -> None:
    shop = cluster("redis", processes=FAILING)
    bad = shop.start(*scenes.QUIET, "--highlander-priority", "1", env={"HIGHLANDER_ARENA_FAILS": "1"})
    shop.leader(PROCESS, timeout=scenes.PATIENCE)
    first = shop.token(PROCESS)
    good = shop.start(*scenes.QUIET)
    scenes.acts(shop, PROCESS, first)
    assert shop.leader(PROCESS) is good
    assert bad.is_running
    starts = [line for line in bad.log.splitlines() if "it cannot work here" in line and "RuntimeError" in line]
    assert len(starts) >= 2, "it was not restarted before it was handed on"
    shop.referee().verdict(PROCESS)


def test_a_process_that_was_killed_starts_again_under_the_same_term(cluster: MakeCluster) -> None:
    shop = cluster("redis")
    worker = shop.start(*scenes.QUIET)
    token = scenes.acts(shop, PROCESS)
    scenes.ready(worker)
    pid = int(shop.latest(PROCESS)[0])
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: shop.latest(PROCESS)[0] != str(pid), scenes.PATIENCE, "another process")
    assert shop.latest(PROCESS)[1] == token
    assert worker.is_running
    assert shop.referee().overlaps(PROCESS) == []


def test_a_killed_launcher_takes_its_processes_along_and_is_replaced(cluster: MakeCluster) -> None:
    shop = cluster("redis")
    worker = shop.start(*scenes.QUIET)
    scenes.acts(shop, PROCESS)
    scenes.ready(worker)
    process = shop.latest(PROCESS)[0]
    below = worker.singleton_processes
    os.kill(below[0], signal.SIGKILL)
    scenes.all_dead(below)
    wait_until(lambda: shop.latest(PROCESS)[0] != process, scenes.PATIENCE, "another process")
    assert worker.is_running
    assert shop.referee().overlaps(PROCESS) == []


@pytest.mark.slow
def test_a_stubborn_process_is_killed_when_its_worker_shuts_down(cluster: MakeCluster) -> None:
    shop = cluster("redis", processes=STUBBORN)
    leader, _ = scenes.leader_and_standby(shop, task_seconds=0.01)
    token = scenes.acts(shop, PROCESS)
    leader.send(signal.SIGTERM)
    scenes.acts(shop, PROCESS, token)
    scenes.nothing_left(leader)
    shop.referee().verdict(PROCESS)


def test_a_stubborn_process_is_dead_before_the_lease_ends_when_the_session_is_lost(cluster: MakeCluster) -> None:
    shop = cluster("redis", processes=STUBBORN)
    leader, standby = scenes.leader_and_standby(shop, task_seconds=0.01)
    token = scenes.acts(shop, PROCESS)
    scenes.terminate_leaders(shop)
    scenes.acts(shop, PROCESS, token)
    shop.referee().verdict(PROCESS)
    assert scenes.gap(shop, PROCESS, token) < LEASE
    assert leader.is_running
    assert standby.is_running


def test_a_stubborn_process_of_a_frozen_node_is_dead_before_the_lease_ends(cluster: MakeCluster) -> None:
    shop = cluster("redis", processes=STUBBORN)
    leader, _ = scenes.leader_and_standby(shop, task_seconds=0.01)
    token = scenes.acts(shop, PROCESS)
    os.kill(leader.keeper, signal.SIGSTOP)
    leader.send(signal.SIGSTOP)
    scenes.acts(shop, PROCESS, token)
    number = 7
    shop.send(number, queue="celery", task="ordinary")
    scenes.ended(shop, number, journal="ordinary")
    shop.referee().verdict(PROCESS)
    assert scenes.gap(shop, PROCESS, token) < LEASE + 4.0


@pytest.mark.slow
@pytest.mark.pool("prefork", reason="it has no pool children")
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--max-tasks-per-child", "1"), id="max-tasks-per-child"),
        pytest.param(("--autoscale", "4,1"), id="autoscale", marks=pytest.mark.slow),
    ],
)
def test_children_that_came_later_die_with_their_worker(cluster: MakeCluster, options: tuple[str, ...]) -> None:
    shop = cluster("rabbitmq", processes={})
    leader = shop.start(*scenes.QUIET, *options)
    scenes.ready(leader)
    first = set(leader.children)
    for number in range(1, 4):
        shop.send(number)
    for number in range(1, 4):
        scenes.ended(shop, number)
    for number in range(101, 104):
        shop.send(number, seconds=600)
    wait_until(lambda: set(leader.children) - first, scenes.PATIENCE, "children that were not there at first")
    token = scenes.acts(shop, QUEUE)
    wait_until(
        lambda: any(run.task_id == "101" for run in shop.referee().task_runs(QUEUE)), scenes.PATIENCE, "a long task"
    )
    shop.start(*scenes.QUIET)
    scenes.ready(*shop.workers)
    leader.send(signal.SIGKILL)
    scenes.acts(shop, QUEUE, token)
    scenes.nothing_left(leader)
    shop.referee().verdict(QUEUE)
