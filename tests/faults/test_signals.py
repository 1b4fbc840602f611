"""Signals to a leader's processes, while a task of the queue and the process singleton are at work."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.scenes import PROCESS, QUEUE

if TYPE_CHECKING:
    from tests.arena.cluster import Cluster, Worker
    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres]

LEASE = 3.0  # of the arena's TIMELY settings
FAR_BELOW_THE_LEASE = LEASE / 2
AFTER_THE_LEASE = LEASE + 0.3 + 4.0  # poll interval with its jitter, and what a busy machine takes


@dataclass(frozen=True)
class Terms:
    """The tokens under which a leader acts before a fault."""

    cluster: Cluster
    queue: int
    process: int

    @classmethod
    def of(cls, cluster: Cluster) -> Terms:
        return cls(cluster, scenes.acts(cluster, QUEUE), scenes.acts(cluster, PROCESS))

    def are_taken_over(self, *, within: float, queue_within: float | None = None) -> None:
        """Wait until both are at work elsewhere; judge overlap, tokens and gaps."""
        scenes.acts(self.cluster, PROCESS, self.process)
        scenes.acts(self.cluster, QUEUE, self.queue)
        self.are_sound()
        assert scenes.gap(self.cluster, PROCESS, self.process) < within
        assert scenes.gap(self.cluster, QUEUE, self.queue) < (within if queue_within is None else queue_within)

    def are_sound(self) -> None:
        self.cluster.referee().verdict(QUEUE, PROCESS)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGTERM, id="SIGTERM"),
        pytest.param(signal.SIGINT, id="SIGINT", marks=pytest.mark.slow),
    ],
)
def test_a_warm_shutdown_hands_over_after_the_running_task(cluster: MakeCluster, number: signal.Signals) -> None:
    shop = cluster("rabbitmq")
    leader, _ = scenes.leader_and_standby(shop, task_seconds=2.0)
    terms = Terms.of(shop)
    leader.send(number)
    scenes.acts(shop, PROCESS, terms.process)
    shop.send(1)
    scenes.ended(shop, 1)
    scenes.nothing_left(leader)
    terms.are_taken_over(within=FAR_BELOW_THE_LEASE)
    assert leader.wait() == (0 if number is signal.SIGTERM else 1)  # so Celery has it
    assert [run.task_id for run in shop.referee().task_runs(QUEUE) if run.finished] == ["0", "1"]


@pytest.mark.pool(
    *("prefork", "threads", "gevent", "eventlet"),
    reason="its consumer is not cancelled while a task runs, and the message sent meanwhile waits for that task's end",
)
def test_a_warm_shutdown_hands_over_before_it_waits_for_ordinary_tasks(cluster: MakeCluster) -> None:
    shop = cluster("rabbitmq")
    room = 2 if shop.pool in ("gevent", "eventlet") else 1  # a full pool of greenlets keeps its consumer waiting
    leader = shop.start(*scenes.QUIET, "--highlander-priority", "1", concurrency=room)
    shop.leader(QUEUE)
    shop.send(1, seconds=600, task="ordinary", queue="celery")
    scenes.wait_for_runs(shop, "1", 1)
    shop.send(0)
    scenes.ready(leader, shop.start(*scenes.QUIET, "-Q", "other"))
    token = scenes.acts(shop, PROCESS)
    leader.send(signal.SIGTERM)
    scenes.acts(shop, PROCESS, token)
    scenes.finishes(shop)
    assert leader.is_running
    shop.referee().verdict(PROCESS)
    assert scenes.gap(shop, PROCESS, token) < FAR_BELOW_THE_LEASE


def _cold_shutdown(leader: Worker) -> None:
    leader.send(signal.SIGQUIT)


def _kill_worker(leader: Worker) -> None:
    leader.send(signal.SIGKILL)


def _kill_keeper(leader: Worker) -> None:
    os.kill(leader.keeper, signal.SIGKILL)


def _kill_both(leader: Worker) -> None:
    keeper = leader.keeper
    os.kill(keeper, signal.SIGKILL)
    leader.send(signal.SIGKILL)


def _stop_worker(leader: Worker) -> None:
    leader.send(signal.SIGSTOP)


def _stop_keeper(leader: Worker) -> None:
    os.kill(leader.keeper, signal.SIGSTOP)


def _stop_both(leader: Worker) -> None:
    keeper = leader.keeper
    os.kill(keeper, signal.SIGSTOP)
    leader.send(signal.SIGSTOP)


@pytest.mark.parametrize("broker", ["rabbitmq", pytest.param("redis", marks=pytest.mark.slow)])
def test_a_cold_shutdown_leaves_nothing_and_is_taken_over(cluster: MakeCluster, broker: str) -> None:
    shop = cluster(broker)
    leader, _ = scenes.leader_and_standby(shop)
    terms = Terms.of(shop)
    _cold_shutdown(leader)
    scenes.nothing_left(leader)
    # Celery tells nobody of a cold shutdown before it has cancelled its consumer and stopped its pool.
    terms.are_taken_over(within=AFTER_THE_LEASE)


@pytest.mark.parametrize(
    ("broker", "driver"),
    [
        ("rabbitmq", "psycopg2"),
        ("redis", "psycopg2"),
        pytest.param("rabbitmq", "psycopg", marks=pytest.mark.slow),
    ],
)
def test_a_killed_worker_leaves_nothing_and_is_taken_over_at_once(
    cluster: MakeCluster, broker: str, driver: str
) -> None:
    shop = cluster(broker, driver=driver)
    leader, _ = scenes.leader_and_standby(shop)
    terms = Terms.of(shop)
    _kill_worker(leader)
    scenes.nothing_left(leader)
    queue_within = FAR_BELOW_THE_LEASE + (1.0 if broker == "redis" else 0.0)  # the standby's BRPOP
    terms.are_taken_over(within=FAR_BELOW_THE_LEASE, queue_within=queue_within)


@pytest.mark.pool("prefork", reason="it has no pool children")
def test_a_killed_pool_child_costs_no_leadership_and_its_task_runs_again(cluster: MakeCluster) -> None:
    shop = cluster("rabbitmq")
    leader, _ = scenes.leader_and_standby(shop)
    terms = Terms.of(shop)
    child = int(next(shop.journals.glob(f"{QUEUE}.*")).name.split(".")[1])
    assert child in leader.children
    os.kill(child, signal.SIGKILL)
    scenes.wait_for_runs(shop, "0", 2)
    scenes.finishes(shop)
    terms.are_sound()
    assert Terms.of(shop) == terms
    assert not shop.referee().concurrent_runs(QUEUE)


def test_a_killed_keeper_ends_the_terms_and_the_worker_lives_on_with_a_new_one(cluster: MakeCluster) -> None:
    shop = cluster("rabbitmq")
    leader, standby = scenes.leader_and_standby(shop)
    terms = Terms.of(shop)
    old, processes = leader.keeper, leader.singleton_processes
    _kill_keeper(leader)
    terms.are_taken_over(within=AFTER_THE_LEASE)
    scenes.all_dead([old, *processes])
    assert leader.is_running
    later = {name: scenes.acts(shop, name) for name in (QUEUE, PROCESS) if shop.leader(name) is standby}
    standby.send(signal.SIGKILL)  # a worker with a new keeper is as good as any; it may lead one of the two already
    for name, token in later.items():
        scenes.acts(shop, name, token)
        assert scenes.gap(shop, name, token) < AFTER_THE_LEASE
    assert shop.leader(QUEUE) is leader
    assert shop.leader(PROCESS) is leader
    terms.are_sound()
    assert leader.keeper != old


def test_a_process_that_never_stops_dies_with_its_keeper(cluster: MakeCluster) -> None:
    shop = cluster("rabbitmq", processes={PROCESS: "tests.arena.shop:stubborn"})
    leader, _ = scenes.leader_and_standby(shop)
    terms = Terms.of(shop)
    old, processes = leader.keeper, leader.singleton_processes
    _kill_keeper(leader)
    scenes.all_dead([old, *processes])
    terms.are_taken_over(within=AFTER_THE_LEASE)


@pytest.mark.parametrize("broker", ["rabbitmq", pytest.param("redis", marks=pytest.mark.slow)])
def test_a_worker_killed_with_its_keeper_leaves_nothing_and_is_taken_over_within_the_lease(
    cluster: MakeCluster, broker: str
) -> None:
    shop = cluster(broker)
    leader, _ = scenes.leader_and_standby(shop)
    terms = Terms.of(shop)
    _kill_both(leader)
    scenes.nothing_left(leader)
    terms.are_taken_over(within=AFTER_THE_LEASE)


def test_a_frozen_worker_is_killed_by_its_keeper(cluster: MakeCluster) -> None:
    shop = cluster("rabbitmq")
    leader, _ = scenes.leader_and_standby(shop)
    terms = Terms.of(shop)
    _stop_worker(leader)
    scenes.nothing_left(leader)
    terms.are_taken_over(within=AFTER_THE_LEASE)


@pytest.mark.slow
def test_a_worker_that_was_frozen_for_a_moment_goes_on_leading(cluster: MakeCluster) -> None:
    shop = cluster("rabbitmq")
    leader, _ = scenes.leader_and_standby(shop)
    terms = Terms.of(shop)
    heartbeats = shop.heartbeats(QUEUE)
    _stop_worker(leader)
    wait_until(lambda: shop.heartbeats(QUEUE) > heartbeats + 1, scenes.PATIENCE, "a heartbeat without the worker")
    leader.send(signal.SIGCONT)
    scenes.goes_on(shop)
    terms.are_sound()
    assert Terms.of(shop) == terms


def test_a_frozen_keeper_is_killed_by_its_worker(cluster: MakeCluster) -> None:
    shop = cluster("rabbitmq")
    leader, _ = scenes.leader_and_standby(shop)
    terms = Terms.of(shop)
    old = leader.keeper
    _stop_keeper(leader)
    terms.are_taken_over(within=AFTER_THE_LEASE)
    scenes.all_dead([old])
    assert leader.is_running


@pytest.mark.slow
def test_a_keeper_that_was_frozen_for_a_moment_goes_on(cluster: MakeCluster) -> None:
    shop = cluster("rabbitmq")
    leader, _ = scenes.leader_and_standby(shop)
    terms = Terms.of(shop)
    _stop_keeper(leader)
    node = scenes.goes_on(shop)
    os.kill(leader.keeper, signal.SIGCONT)
    heartbeats = shop.heartbeats(QUEUE)
    wait_until(lambda: shop.heartbeats(QUEUE) > heartbeats + 1, scenes.PATIENCE, "heartbeats as before")
    terms.are_sound()
    assert node == str(leader.pid)
    assert Terms.of(shop) == terms


def test_a_node_frozen_as_a_whole_has_stopped_its_work_before_its_lease_ends(cluster: MakeCluster) -> None:
    shop = cluster("rabbitmq")
    # It runs again on the standby: where that has room for one only, the other messages wait for its end.
    leader, _ = scenes.leader_and_standby(shop, task_seconds=2 * AFTER_THE_LEASE if shop.pool == "solo" else 600.0)
    terms = Terms.of(shop)
    _stop_both(leader)
    shop.leader(QUEUE, other_than=terms.queue)
    numbers = range(1, 21)  # more than the frozen worker's share, for the broker does not see that it is frozen
    for number in numbers:
        shop.send(number)
    terms.are_taken_over(within=AFTER_THE_LEASE)
    os.kill(leader.keeper, signal.SIGCONT)
    leader.send(signal.SIGCONT)
    for number in numbers:
        scenes.ended(shop, number)
    # Its keeper wakes up after the lease: it kills a worker that has not confirmed by then that its work is dead.
    wait_until(
        lambda: not leader.is_running or shop.lock_sessions() == 2, scenes.PATIENCE, "the node to be dead or back"
    )
    scenes.finishes(shop)
    terms.are_sound()
