"""A look through the machine's processes that takes longer than the kill margin: a read in /proc may wait for any.

The kernel locks what it shows of a process there, and a process that is executed from a slow disk holds that lock.
"""

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

SLOW = {"HIGHLANDER_ARENA_SLOW_SEARCH": "4"}  # seconds; the margin is 0.4


def test_the_work_of_a_frozen_node_stops_before_its_lease_ends(cluster: MakeCluster) -> None:
    shop = cluster("rabbitmq", pool="prefork")
    leader, _ = scenes.leader_and_standby(shop, leader_env=SLOW)
    token = scenes.acts(shop, QUEUE)
    os.kill(leader.keeper, signal.SIGSTOP)
    leader.send(signal.SIGSTOP)
    shop.leader(QUEUE, other_than=token)
    for number in range(1, 21):  # more than the frozen worker's share: the broker does not see that it is frozen
        shop.send(number)
    scenes.acts(shop, QUEUE, token)
    os.kill(leader.keeper, signal.SIGCONT)
    leader.send(signal.SIGCONT)
    scenes.finishes(shop)
    shop.referee().verdict(QUEUE)
