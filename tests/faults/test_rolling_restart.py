"""Five workers are restarted one after the other, as a deployment does it; the report says what it cost."""

from __future__ import annotations

import signal
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from tests.faults import scenes
from tests.faults.scenes import PROCESS, QUEUE

if TYPE_CHECKING:
    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres]

WORKERS = 5
LEASE = 3.0  # of the arena's TIMELY settings


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_rolling_restart_costs_short_gaps_and_no_overlap(cluster: MakeCluster) -> None:
    shop = cluster("redis")
    old = [shop.start(*scenes.QUIET, "-X", QUEUE) for _ in range(WORKERS)]
    scenes.ready(*old)
    shop.send(0)
    for name in (PROCESS, QUEUE):
        scenes.acts(shop, name)
    for number, worker in enumerate(old, start=1):
        new = shop.start(*scenes.QUIET, "-X", QUEUE)  # maxSurge: 1
        scenes.ready(new)
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0
        shop.leader(PROCESS)
        shop.leader(QUEUE)
        shop.send(number)
    scenes.finishes(shop)
    referee = shop.referee()
    referee.verdict(PROCESS, QUEUE)
    print(referee.report())
    spells = sorted(referee.spells(PROCESS), key=lambda spell: spell.first)
    gaps = [(later.first - earlier.last) / 1e9 for earlier, later in pairwise(spells)]
    print(f"{len(gaps)} handovers, {sum(gaps) * 1000:.0f} ms without a leader in all")
    assert max(gaps, default=0.0) < LEASE / 2
    assert sum(gaps) < LEASE
