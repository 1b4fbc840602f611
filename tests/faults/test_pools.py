"""A leader that loses its leadership on every pool there is, while a task of its queue runs for long."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.faults import scenes
from tests.faults.scenes import PROCESS, QUEUE
from tests.faults.test_signals import AFTER_THE_LEASE, FAR_BELOW_THE_LEASE, Terms

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.arena.cluster import Cluster, Worker
    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres]

POOLS = ("threads", "gevent", "solo", "eventlet")


def _kill_worker(_: Cluster, leader: Worker) -> None:
    leader.send(signal.SIGKILL)


def _kill_keeper(_: Cluster, leader: Worker) -> None:
    os.kill(leader.keeper, signal.SIGKILL)


def _freeze_worker(_: Cluster, leader: Worker) -> None:
    leader.send(signal.SIGSTOP)


def _freeze_keeper(_: Cluster, leader: Worker) -> None:
    os.kill(leader.keeper, signal.SIGSTOP)


def _quit_worker(_: Cluster, leader: Worker) -> None:
    leader.send(signal.SIGQUIT)


def _end_session(cluster: Cluster, _: Worker) -> None:
    scenes.terminate_leaders(cluster)


FAULTS: dict[str, tuple[Callable[[Cluster, Worker], None], bool | None]] = {
    "worker killed": (_kill_worker, False),
    "keeper killed": (_kill_keeper, True),
    "worker frozen": (_freeze_worker, False),
    "keeper frozen": (_freeze_keeper, True),
    "session terminated": (_end_session, True),
    "cold shutdown": (_quit_worker, None),
}
"""What happens to the leader, and whether its worker lives on (None: not said here)."""

QUICK = {("threads", "session terminated"), ("gevent", "keeper killed"), ("solo", "session terminated")}


@pytest.mark.parametrize(
    ("pool", "fault"),
    [
        pytest.param(pool, fault, marks=[] if (pool, fault) in QUICK else [pytest.mark.slow])
        for pool in POOLS
        for fault in FAULTS
    ],
)
def test_a_running_task_is_stopped_before_the_next_leader_acts(cluster: MakeCluster, pool: str, fault: str) -> None:
    inject, lives_on = FAULTS[fault]
    shop = cluster("rabbitmq", pool=pool)
    leader, _ = scenes.leader_and_standby(shop)
    terms = Terms.of(shop)
    inject(shop, leader)
    terms.are_taken_over(within=AFTER_THE_LEASE)
    scenes.wait_for_runs(shop, "0", 2)
    terms.are_sound()
    if lives_on:
        assert leader.is_running
    elif lives_on is False:
        scenes.nothing_left(leader)


@pytest.mark.parametrize("pool", ["threads", *(pytest.param(pool, marks=pytest.mark.slow) for pool in POOLS[1:])])
@pytest.mark.parametrize("broker", ["redis", pytest.param("rabbitmq", marks=pytest.mark.slow)])
def test_a_warm_shutdown_hands_over_after_the_running_task(cluster: MakeCluster, pool: str, broker: str) -> None:
    shop = cluster(broker, pool=pool)
    leader, _ = scenes.leader_and_standby(shop, task_seconds=2.0)
    terms = Terms.of(shop)
    leader.send(signal.SIGTERM)
    scenes.acts(shop, PROCESS, terms.process)
    shop.send(1)
    scenes.ended(shop, 1)
    scenes.nothing_left(leader)
    terms.are_taken_over(within=FAR_BELOW_THE_LEASE)
    assert [run.task_id for run in shop.referee().task_runs(QUEUE) if run.finished] == ["0", "1"]
