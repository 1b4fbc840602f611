"""Fifty singletons on three workers: one connection each, spread evenly, taken over together."""

from __future__ import annotations

import signal
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.arena.waiting import wait_until
from tests.faults import scenes

if TYPE_CHECKING:
    from tests.arena.cluster import Cluster
    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres]

NAMES = [f"q{number:02}" for number in range(50)]
FEW = 2


def shares(cluster: Cluster) -> Counter[int]:
    """How many singletons each worker leads, by its pid."""
    return Counter(pid for pid, _ in cluster.acting().values())


@pytest.mark.slow
def test_fifty_singletons_spread_over_three_workers_with_one_connection_each(cluster: MakeCluster) -> None:
    shop = cluster("redis", processes={}, conf={"highlander_queues": NAMES})
    workers = [shop.start(*scenes.QUIET) for _ in range(3)]
    scenes.ready(*workers)

    def spread() -> bool:
        led = shares(shop)
        return len(shop.acting()) == len(NAMES) and len(led) == len(workers) and max(led.values()) <= 17 + FEW

    wait_until(spread, 2 * scenes.PATIENCE, "50 singletons to be spread over 3 workers")
    assert shop.lock_sessions() == len(workers)
    victim, *others = workers
    tokens = {name: token for name, (pid, token) in shop.acting().items() if pid == victim.pid}
    assert tokens
    victim.send(signal.SIGKILL)

    def taken_over() -> bool:
        acting = shop.acting()
        return len(acting) == len(NAMES) and victim.pid not in {pid for pid, _ in acting.values()}

    wait_until(taken_over, scenes.PATIENCE, "the others to lead all 50")
    acting = shop.acting()
    assert all(acting[name][1] > token for name, token in tokens.items())
    wait_until(lambda: max(shares(shop).values()) <= 25 + FEW, 2 * scenes.PATIENCE, "50 to be spread over 2 workers")
    for number, name in enumerate(NAMES):
        shop.send(number, queue=name)
    for number in range(len(NAMES)):
        scenes.ended(shop, number)
    assert shop.lock_sessions() == len(others)
    assert all(worker.is_running for worker in others)
    scenes.nothing_left(victim)
