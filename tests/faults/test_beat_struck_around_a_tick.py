"""The active beat is killed or paused at each point on a tick's way: claimed, published, settled."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.arena import executions
from tests.arena.deadly import POINTS
from tests.arena.waiting import wait_until
from tests.faults.test_beat_dies import ENTRIES, LIMIT, judge, runs_more

if TYPE_CHECKING:
    from tests.arena.beats import BeatCluster
    from tests.faults.conftest import MakeBeats

pytestmark = [pytest.mark.fault, pytest.mark.postgres]

SCHEDULER = "tests.arena.deadly:DeadlyScheduler"


def struck_at(beats: MakeBeats, broker: str, point: str, number: str) -> tuple[BeatCluster, int]:
    """A cluster of which the active beat has been struck, and its pid."""
    cluster = beats(ENTRIES, broker, conf={"highlander_beat_missed": "all"})
    cluster.start_consumer()
    for _ in range(2):
        cluster.start_beat(scheduler=SCHEDULER, env={"HIGHLANDER_ARENA_STRIKE": f"{point} {number}"})
    struck = cluster.journals / "struck"
    wait_until(lambda: struck.exists() and struck.read_text(), LIMIT, "the strike")
    return cluster, int(struck.read_text())


BROKERS = [
    pytest.param("redis", marks=pytest.mark.redis),
    pytest.param("rabbitmq", marks=[pytest.mark.rabbitmq, pytest.mark.slow]),
]


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(point, marks=[] if point in ("after_claim", "after_publish") else [pytest.mark.slow])
        for point in POINTS
    ],
)
@pytest.mark.parametrize("broker", BROKERS)
def test_a_tick_runs_once_when_the_beat_is_killed(beats: MakeBeats, broker: str, point: str) -> None:
    cluster, pid = struck_at(beats, broker, point, "SIGKILL")
    wait_until(lambda: pid not in [beat.pid for beat in cluster.workers if beat.is_running], LIMIT, "its death")
    cluster.active()
    runs_more(cluster, 12)
    judge(cluster)
    again = cluster.query("select count(*) from highlander_tick where attempts > 1")[0][0]
    assert again > 0 or point in ("before_claim", "after_settle")


@pytest.mark.parametrize("broker", BROKERS)
def test_the_late_message_of_a_beat_that_was_paused_while_it_published_does_not_run_a_second_time(
    beats: MakeBeats, broker: str
) -> None:
    """Its keeper is paused with it, as by a hypervisor: nobody can kill it in time."""
    cluster = beats(ENTRIES, broker, conf={"highlander_beat_missed": "all", "highlander_on_stuck": "continue"})
    cluster.start_consumer()
    env = {"HIGHLANDER_ARENA_STRIKE": "before_publish SIGSTOP"}
    paused = cluster.start_beat(scheduler=SCHEDULER, env=env)
    struck = cluster.journals / "struck"
    wait_until(lambda: struck.exists() and struck.read_text(), LIMIT, "the strike")
    os.kill(paused.keeper, signal.SIGSTOP)
    token = cluster.token("beat")
    cluster.start_beat()
    cluster.active(other_than=token)
    runs_more(cluster, 12)
    os.kill(paused.pid, signal.SIGCONT)  # it publishes what it was about to
    consumer = cluster.workers[0]
    wait_until(
        lambda: "another copy of the message of this tick" in consumer.log, LIMIT, "its message to be thrown away"
    )
    os.kill(paused.keeper, signal.SIGCONT)
    runs_more(cluster)
    runs = cluster.runs()
    assert executions.doubled(runs) == {}
