"""A node frozen as a whole, longer than its lease, on a pool whose tasks run in the worker's own process."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.faults import scenes
from tests.faults.scenes import QUEUE

if TYPE_CHECKING:
    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres]


@pytest.mark.parametrize(
    "pool", ["threads", *(pytest.param(pool, marks=pytest.mark.slow) for pool in ("gevent", "solo"))]
)
def test_the_frozen_worker_is_dead_before_the_next_leader_acts(cluster: MakeCluster, pool: str) -> None:
    shop = cluster("rabbitmq", pool=pool)
    leader, _ = scenes.leader_and_standby(shop)
    token = scenes.acts(shop, QUEUE)
    keeper = leader.keeper
    os.kill(keeper, signal.SIGSTOP)
    leader.send(signal.SIGSTOP)
    scenes.acts(shop, QUEUE, token)  # which gets the task only from a broker that sees the old leader's end
    assert not leader.is_running
    os.kill(keeper, signal.SIGCONT)
    scenes.nothing_left(leader)
    shop.referee().verdict(QUEUE)
