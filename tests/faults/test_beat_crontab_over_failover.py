"""The active beat ends seconds before a crontab is due, the next one begins just after (sidekiq#6804, redbeat#271)."""

from __future__ import annotations

import signal
import time
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest

from tests.arena.waiting import wait_until
from tests.faults.test_beat_dies import LIMIT
from tests.unit.test_due import CHANGES

if TYPE_CHECKING:
    from tests.faults.conftest import MakeBeats

pytestmark = [pytest.mark.fault, pytest.mark.postgres, pytest.mark.redis]

UTC = timezone.utc
ENTRIES: dict[str, dict[str, Any]] = {
    "half-hourly": {"crontab": {"minute": "0,30"}},
    "daily": {"crontab": {"hour": 2, "minute": 0}},
    "yearly": {"crontab": {"minute": 0, "hour": 0, "day_of_month": 1, "month_of_year": 7}},
}


def run_over(beats: MakeBeats, zone: str, instant: datetime) -> list[tuple[str, datetime]]:
    """The ticks that ran when a beat ended 3 s before `instant`, and the next one began just after it."""
    cluster = beats(ENTRIES, conf={"timezone": zone})
    cluster.start_consumer()
    shift = (instant - timedelta(seconds=15) - datetime.now(UTC)).total_seconds()
    clock: dict[str, Any] = {
        "scheduler": "tests.arena.shifted:ShiftedScheduler",
        "env": {"HIGHLANDER_ARENA_SHIFT": str(shift)},
    }

    def wait_for(seconds: float) -> None:
        wait_until(lambda: time.time() + shift >= instant.timestamp() + seconds, LIMIT, f"{seconds:+g} s")

    first = cluster.start_beat(**clock)
    assert cluster.active() is first
    wait_until(lambda: cluster.query("select name from highlander_entry"), LIMIT, "the entries to be on record")
    wait_for(-3)
    assert first.is_running
    first.send(signal.SIGTERM)
    assert first.wait() == 0
    assert cluster.runs() == []
    wait_for(0.2)
    cluster.start_beat(**clock)
    wait_until(cluster.runs, LIMIT, "the tick to be made up for")
    made_up = len(cluster.runs())
    second = cluster.workers[-1]
    wait_until(lambda: second.log.count("Sending due task") >= made_up, LIMIT, "its log")
    wait_for(8)
    return [(run.entry, run.due_at) for run in cluster.runs()]


@pytest.mark.slow
def test_the_tick_that_came_due_between_two_beats_runs_once(beats: MakeBeats) -> None:
    instant = datetime(2026, 6, 1, 15, tzinfo=UTC)
    assert run_over(beats, "Europe/Berlin", instant) == [("half-hourly", instant)]


@pytest.mark.slow
@pytest.mark.parametrize("zone", CHANGES)
def test_it_does_when_the_clocks_are_set_forward(beats: MakeBeats, zone: str) -> None:
    """At 02:00, which there is not: what should run then runs at that instant."""
    instant = CHANGES[zone][0]
    assert sorted(run_over(beats, zone, instant)) == [("daily", instant), ("half-hourly", instant)]


@pytest.mark.slow
@pytest.mark.parametrize("zone", CHANGES)
def test_it_does_when_the_clocks_are_set_back(beats: MakeBeats, zone: str) -> None:
    instant = CHANGES[zone][1]
    assert run_over(beats, zone, instant) == [("half-hourly", instant)]
