"""Entries of the schedule that cannot work: one that cannot be serialised, one that cannot say when it is due."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.arena import executions
from tests.arena.waiting import wait_until
from tests.faults.test_beat_dies import ENTRIES, INTERVALS, LIMIT, runs_more

if TYPE_CHECKING:
    from tests.faults.conftest import MakeBeats

pytestmark = [pytest.mark.fault, pytest.mark.postgres, pytest.mark.redis]


def test_the_others_go_on_and_the_reason_is_logged_once(beats: MakeBeats) -> None:
    broken: dict[str, dict[str, Any]] = {
        "unspeakable": {"seconds": 0.3, "unspeakable": True},
        "failing": {"failing": True},
    }
    cluster = beats({**ENTRIES, **broken}, conf={"highlander_beat_missed": "all", "beat_max_loop_interval": 0.5})
    cluster.start_consumer()
    beat = cluster.start_beat()
    runs_more(cluster, 20)
    runs = cluster.runs()
    assert executions.doubled(runs) == {}
    assert executions.missing(runs, INTERVALS) == {}
    assert beat.log.count("the entry 'unspeakable' cannot be published: EncodeError") == 1
    assert beat.log.count("the entry 'failing' cannot say when it is due: RuntimeError: the calendar is gone") == 1
    failures = cluster.query("select entry, failure from highlander_tick where failure is not null")
    assert len(failures) >= 2
    assert {entry for entry, _ in failures} == {"unspeakable"}
    assert "is not JSON serializable" in failures[0][1]


def test_a_beat_in_which_everything_fails_lets_another_one_try(beats: MakeBeats) -> None:
    """One that cannot reach the broker, for instance, where others can."""
    cluster = beats(ENTRIES, conf={"highlander_beat_missed": "all", "highlander_progress_timeout": 2.0})
    cluster.start_consumer()
    cut_off = cluster.start_beat(conf={"broker_url": "redis://127.0.0.1:1/0"})
    assert cluster.active() is cut_off
    wait_until(lambda: "the broker does not take messages" in cut_off.log, LIMIT, "its complaint")
    other = cluster.start_beat()
    token = cluster.token("beat")
    assert cluster.active(other_than=token) is other
    runs_more(cluster, 12)
    runs = cluster.runs()
    assert executions.doubled(runs) == {}
    assert executions.missing(runs, INTERVALS) == {}
    assert cut_off.is_running
    assert cut_off.log.count("the broker does not take messages") == 1
    assert "no tick could be published for 2 s" in cut_off.log


@pytest.mark.slow
def test_a_beat_that_hangs_is_killed_and_another_one_goes_on(beats: MakeBeats) -> None:
    entries = {**ENTRIES, "hanging": {"seconds": 0.6, "hanging": True}}
    cluster = beats(entries, conf={"highlander_beat_missed": "all", "highlander_progress_timeout": 2.0})
    cluster.start_consumer()
    hanging = cluster.start_beat(env={"HIGHLANDER_ARENA_FAILS": "1"})
    assert cluster.active() is hanging
    wait_until(cluster.runs, LIMIT, "a run")
    other = cluster.start_beat()
    token = cluster.token("beat")
    assert cluster.active(other_than=token) is other
    assert hanging.wait() == -signal.SIGKILL
    runs_more(cluster, 12)
    runs = cluster.runs()
    assert executions.doubled(runs) == {}
    assert executions.missing(runs, {**INTERVALS, "hanging": 0.6}) == {}
