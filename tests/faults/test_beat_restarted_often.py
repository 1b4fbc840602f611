"""Beat is restarted more often than its longest interval (river#791)."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.arena import executions
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from tests.faults.conftest import MakeBeats

pytestmark = [pytest.mark.fault, pytest.mark.postgres, pytest.mark.redis, pytest.mark.slow]


def test_an_entry_runs_on_time_though_no_beat_lives_as_long_as_its_interval(beats: MakeBeats) -> None:
    cluster = beats({"rare": {"seconds": 4.0}})
    cluster.start_consumer()
    end = time.monotonic() + 40
    restarts = 0
    while len(cluster.runs()) < 3 and time.monotonic() < end:
        beat = cluster.start_beat()
        cluster.active()
        born = time.monotonic()
        wait_until(lambda born=born: time.monotonic() - born > 1.5, 5, "a short life")  # type: ignore[misc]
        beat.send(signal.SIGTERM if restarts % 2 else signal.SIGKILL)
        beat.wait()
        restarts += 1
    runs = cluster.runs()
    assert restarts >= 4
    assert len(runs) >= 3
    assert executions.doubled(runs) == {}
    assert executions.missing(runs, {"rare": 4.0}) == {}
