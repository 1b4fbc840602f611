"""The active beat is killed at every 10 ms around a tick, again and again."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.arena import executions
from tests.arena.waiting import wait_until
from tests.faults.test_beat_dies import LIMIT

if TYPE_CHECKING:
    from tests.arena.beats import BeatCluster
    from tests.faults.conftest import MakeBeats

pytestmark = [pytest.mark.fault, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(300)]

INTERVAL = 0.6
OFFSETS = [milliseconds / 1000 for milliseconds in range(-60, 70, 10)]


def next_due(cluster: BeatCluster) -> float:
    """When the next tick is due."""
    rows = cluster.query("select extract(epoch from last_run_at)::float8 from highlander_entry where name = 'tick'")
    return float(rows[0][0]) + INTERVAL


@pytest.mark.parametrize(
    "broker", [pytest.param("redis", marks=pytest.mark.redis), pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)]
)
def test_every_tick_runs_once(beats: MakeBeats, broker: str) -> None:
    cluster = beats({"tick": {"seconds": INTERVAL}}, broker, conf={"highlander_beat_missed": "all"})
    cluster.start_consumer()
    cluster.start_beat()
    for offset in OFFSETS:
        standby = cluster.start_beat()
        wait_until(lambda standby=standby: "lock session open" in standby.log, LIMIT, "a standby")  # type: ignore[misc]
        active = cluster.active()
        so_far = len(cluster.runs())
        wait_until(lambda so_far=so_far: len(cluster.runs()) > so_far, LIMIT, "a tick")  # type: ignore[misc]
        at = next_due(cluster) + offset
        while at < time.time():
            at += INTERVAL
        time.sleep(at - time.time())  # the instant is the fault
        os.kill(active.pid, signal.SIGKILL)
    cluster.active()
    so_far = len(cluster.runs())
    wait_until(lambda: len(cluster.runs()) > so_far + 3, LIMIT, "more ticks")
    runs = cluster.runs()
    assert executions.doubled(runs) == {}
    assert executions.missing(runs, {"tick": INTERVAL}) == {}
    print(cluster.query("select attempts, count(*) from highlander_tick group by 1"))
