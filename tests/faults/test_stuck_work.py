"""Work that cannot be stopped: a main loop that hangs, tasks in C calls, greenlets that never yield."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.scenes import PATIENCE, QUEUE

if TYPE_CHECKING:
    from tests.arena.cluster import Cluster, Worker
    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres]

SLEEP = 20.0


def two_workers(cluster: Cluster) -> tuple[Worker, Worker]:
    leader = cluster.start(*scenes.QUIET, "--highlander-priority", "1", concurrency=2)
    cluster.leader(QUEUE, timeout=PATIENCE)
    standby = cluster.start(*scenes.QUIET, concurrency=2)
    scenes.ready(standby)
    return leader, standby


@pytest.mark.parametrize("broker", ["rabbitmq", pytest.param("redis", marks=pytest.mark.slow)])
@pytest.mark.parametrize("pool", ["prefork", *(pytest.param(pool, marks=pytest.mark.slow) for pool in ("threads",))])
def test_a_leader_whose_main_loop_hangs_is_deposed(cluster: MakeCluster, broker: str, pool: str) -> None:
    shop = cluster(broker, processes={}, conf={"highlander_progress_timeout": 1.0}, pool=pool)
    leader, standby = two_workers(shop)
    token = shop.token(QUEUE)
    leader.send(signal.SIGUSR2)
    for number in range(1, 21):  # some of them reach the hung worker before anybody knows
        shop.send(number)
    assert shop.leader(QUEUE, other_than=token) is standby
    for number in range(1, 21):
        scenes.ended(shop, number)
    scenes.nothing_left(leader)
    assert "main loop made no progress" in leader.log
    shop.referee().verdict(QUEUE)


@pytest.mark.slow
def test_a_main_loop_that_runs_a_long_task_itself_does_not_count_as_hung(cluster: MakeCluster) -> None:
    shop = cluster("rabbitmq", processes={}, conf={"highlander_progress_timeout": 1.0}, pool="solo")
    leader, _ = two_workers(shop)
    token = shop.token(QUEUE)
    shop.send(1, seconds=5.0)
    scenes.ended(shop, 1)
    scenes.finishes(shop)
    assert leader.is_running
    assert shop.token(QUEUE) == token


@pytest.mark.parametrize(
    ("pool", "task"),
    [
        ("threads", "sleeps"),
        pytest.param("prefork", "holds_gil", marks=pytest.mark.slow),
        pytest.param("threads", "holds_gil", marks=pytest.mark.slow),
        pytest.param("gevent", "sleeps", marks=pytest.mark.slow),
        pytest.param("gevent", "holds_gil", marks=pytest.mark.slow),
        pytest.param("eventlet", "sleeps", marks=pytest.mark.slow),
        pytest.param("solo", "sleeps", marks=pytest.mark.slow),
        pytest.param("solo", "holds_gil", marks=pytest.mark.slow),
    ],
)
def test_a_task_that_nothing_can_interrupt_is_dead_before_the_next_leader_acts(
    cluster: MakeCluster, pool: str, task: str
) -> None:
    shop = cluster("rabbitmq", processes={}, pool=pool)
    leader, _ = two_workers(shop)
    shop.send(1, seconds=SLEEP, task=task)
    scenes.wait_for_runs(shop, "1", 1)
    token = shop.token(QUEUE)
    scenes.terminate_leaders(shop)
    shop.leader(QUEUE, other_than=token, timeout=PATIENCE)
    wait_until(lambda: len(shop.referee().task_runs(QUEUE)) > 1, PATIENCE, "the task to be given to somebody else")
    shop.referee().verdict(QUEUE)
    first = shop.referee().task_runs(QUEUE)[0]
    assert not first.finished
    assert leader.is_running == (pool == "prefork")


@pytest.mark.slow
def test_a_stuck_worker_goes_on_where_that_is_wanted_and_says_so(cluster: MakeCluster) -> None:
    shop = cluster("rabbitmq", processes={}, pool="threads", conf={"highlander_on_stuck": "continue"})
    leader, standby = two_workers(shop)
    assert "unsafe" in leader.log
    shop.send(1, seconds=12.0, task="sleeps")
    scenes.wait_for_runs(shop, "1", 1)
    token = shop.token(QUEUE)
    scenes.terminate_leaders(shop)
    assert shop.leader(QUEUE, other_than=token, timeout=PATIENCE) is standby
    scenes.ended(shop, 1)
    assert leader.is_running
    assert "UNSAFELY" in leader.log
    token = shop.token(QUEUE)
    standby.send(signal.SIGKILL)  # the other one is of use again when its task has ended
    assert shop.leader(QUEUE, other_than=token, timeout=PATIENCE) is leader


def test_a_process_that_makes_no_progress_goes_to_another_node(cluster: MakeCluster) -> None:
    conf = {"highlander_progress_timeout": 1.0}
    shop = cluster("rabbitmq", processes={"hanging": "tests.arena.shop:hanging"}, conf=conf)
    bad = shop.start(*scenes.QUIET, "--highlander-priority", "1", env={"HIGHLANDER_ARENA_FAILS": "1"})
    assert shop.leader("hanging", timeout=PATIENCE) is bad
    token = scenes.acts(shop, "hanging")
    good = shop.start(*scenes.QUIET)
    assert shop.leader("hanging", other_than=token, timeout=PATIENCE) is good
    token = scenes.acts(shop, "hanging", token)
    heartbeats = shop.heartbeats("hanging")
    wait_until(lambda: shop.heartbeats("hanging") > heartbeats + 8, PATIENCE, "more than the time for progress")
    assert shop.token("hanging") == token
    assert "no progress for 1 s" in bad.log
    shop.referee().verdict("hanging")
