"""`celery control pool_restart` replaces every pool child of a leader, and then the leader is killed."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.arena import processes
from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.scenes import QUEUE

if TYPE_CHECKING:
    from tests.faults.conftest import MakeCluster

pytestmark = [
    pytest.mark.fault,
    pytest.mark.postgres,
    pytest.mark.pool("prefork", reason="it has no pool children"),
]


def test_the_children_of_a_restarted_pool_die_with_their_worker(cluster: MakeCluster) -> None:
    shop = cluster("redis", processes={}, conf={"worker_pool_restarts": True})
    leader = shop.start(*scenes.QUIET)
    scenes.ready(leader)
    scenes.finishes(shop)
    first = set(leader.children)
    assert len(first) == 1
    assert "reload started" in shop.command("control", "pool_restart").stdout

    def replaced() -> bool:
        scenes.finishes(shop)  # a child notices between two tasks
        return not any(map(processes.is_alive, first)) and len(leader.children) == 1

    wait_until(replaced, scenes.PATIENCE, "other children")
    shop.send(1, seconds=600)
    scenes.wait_for_runs(shop, "1", 1)
    token = scenes.acts(shop, QUEUE)
    scenes.ready(shop.start(*scenes.QUIET))
    leader.send(signal.SIGKILL)
    scenes.acts(shop, QUEUE, token)
    scenes.nothing_left(leader)
    shop.referee().verdict(QUEUE)
