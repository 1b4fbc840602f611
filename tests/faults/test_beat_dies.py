"""The active beat ends, in every way in which a process can: no tick is lost, none runs twice."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.arena import executions
from tests.arena.waiting import WaitedInVainError, wait_until

if TYPE_CHECKING:
    from tests.arena.beats import BeatCluster
    from tests.arena.cluster import Worker
    from tests.faults.conftest import MakeBeats

pytestmark = [pytest.mark.fault, pytest.mark.postgres]

ENTRIES = {f"every-{seconds}": {"seconds": seconds} for seconds in (0.5, 0.7, 1.0)}
INTERVALS = {name: fields["seconds"] for name, fields in ENTRIES.items()}
LIMIT = 30.0


def runs_more(cluster: BeatCluster, count: int = 8) -> None:
    """Wait until so many more ticks ran."""
    goal = len(cluster.runs()) + count
    wait_until(lambda: len(cluster.runs()) >= goal, LIMIT, f"{goal} runs")


def strike(how: str, cluster: BeatCluster, active: Worker) -> None:
    match how:
        case "SIGTERM" | "SIGINT":
            active.send(getattr(signal, how))
        case "kill -9":
            os.kill(active.pid, signal.SIGKILL)
        case "kill -9 with its keeper":
            keeper = active.keeper
            os.kill(keeper, signal.SIGKILL)
            os.kill(active.pid, signal.SIGKILL)
        case "kill -9 of its keeper":
            os.kill(active.keeper, signal.SIGKILL)
        case "SIGSTOP":
            os.kill(active.pid, signal.SIGSTOP)
        case "terminated session":
            cluster.query(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'highlander%'"
                " and datname = current_database()"
            )


def judge(cluster: BeatCluster) -> None:
    """Every tick of the grid ran, and ran once. What was caught up with does not run in the order of its ticks."""
    with suppress(WaitedInVainError):
        wait_until(lambda: not executions.missing(cluster.runs(), INTERVALS), LIMIT, "every tick to have run")
    runs = cluster.runs()
    assert executions.missing(runs, INTERVALS) == {}
    assert executions.doubled(runs) == {}

    def unsettled() -> int:
        [(count,)] = cluster.query("select count(*) from highlander_tick where settled_at is null")
        return int(count)

    wait_until(lambda: unsettled() <= len(ENTRIES), LIMIT, "all to be settled but what is published at the moment")


WAYS = ("SIGTERM", "kill -9", "kill -9 with its keeper", "SIGSTOP")
FURTHER_WAYS = ("SIGINT", "kill -9 of its keeper", "terminated session")


@pytest.mark.parametrize(
    ("broker", "how"),
    [
        *(pytest.param("redis", how, marks=pytest.mark.redis) for how in WAYS),
        *(pytest.param("redis", how, marks=[pytest.mark.redis, pytest.mark.slow]) for how in FURTHER_WAYS),
        *(pytest.param("rabbitmq", how, marks=[pytest.mark.rabbitmq, pytest.mark.slow]) for how in WAYS),
    ],
)
def test_no_tick_is_lost_or_doubled_when_the_active_beat_ends_by(beats: MakeBeats, broker: str, how: str) -> None:
    cluster = beats(ENTRIES, broker, conf={"highlander_beat_missed": "all"})
    cluster.start_consumer()
    for _ in range(2):
        cluster.start_beat()
    active = cluster.active()
    runs_more(cluster)
    token = cluster.token("beat")
    strike(how, cluster, active)
    cluster.active(other_than=token)
    runs_more(cluster)
    judge(cluster)


@pytest.mark.redis
def test_a_beat_that_is_told_to_end_hands_over_and_leaves_nothing_behind(beats: MakeBeats) -> None:
    cluster = beats(ENTRIES)
    active = cluster.start_beat()
    cluster.active()
    active.send(signal.SIGTERM)
    assert active.wait() == 0
    wait_until(lambda: not active.family, LIMIT, "its keeper to be gone")
    assert cluster.query("select reason from highlander_term order by token desc limit 1") == [("beat shutting down",)]
    assert "Traceback" not in active.log
