"""Beat in a process beside a worker: it dies, hangs, or its worker does."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.arena import executions, processes
from tests.arena.waiting import wait_until
from tests.faults.test_beat_dies import ENTRIES, LIMIT, judge, runs_more

if TYPE_CHECKING:
    from tests.arena.beats import BeatCluster
    from tests.arena.cluster import Worker
    from tests.faults.conftest import MakeBeats

pytestmark = [pytest.mark.fault, pytest.mark.postgres, pytest.mark.redis]

CONF = {"highlander_beat": True, "highlander_beat_missed": "all"}


def two_workers(beats: MakeBeats, **conf: object) -> tuple[BeatCluster, Worker]:
    """A cluster of two workers of which one runs the beat, and that one."""
    cluster = beats(ENTRIES, conf={**CONF, **conf})
    cluster.start_consumer(conf={"highlander_beat": False})
    for _ in range(2):
        start_worker(cluster)
    active = cluster.active()
    runs_more(cluster)
    return cluster, active


def start_worker(cluster: BeatCluster, **more: Any) -> Worker:
    """A worker that runs a beat, and consumes nothing: killed, it would keep messages until they are visible again."""
    return cluster.start("-Q", "idle", "-X", "highlander", **more)


def beat_process(worker: Worker) -> int:
    """The process in which a worker's beat runs: the one at the end of the chain below its keeper."""
    (leaf,) = [pid for pid in processes.descendants(worker.keeper) if not processes.descendants(pid)]
    return leaf


def test_it_is_started_again_when_it_is_killed(beats: MakeBeats) -> None:
    cluster, active = two_workers(beats)
    pid = beat_process(active)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not processes.is_alive(pid), LIMIT, "its death")
    runs_more(cluster, 12)
    judge(cluster)


@pytest.mark.parametrize(
    "how",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_another_workers_beat_goes_on_when_its_worker_is_gone(beats: MakeBeats, how: signal.Signals) -> None:
    cluster, active = two_workers(beats)
    token = cluster.token("beat")
    active.send(how)
    assert cluster.active(other_than=token) is not active
    runs_more(cluster, 12)
    judge(cluster)


@pytest.mark.slow
def test_no_tick_is_lost_or_doubled_when_its_worker_is_frozen(beats: MakeBeats) -> None:
    """It is a process of its own and goes on; unless the worker also leads a queue, for which it is killed."""
    cluster, active = two_workers(beats)
    active.send(signal.SIGSTOP)
    runs_more(cluster, 40)
    judge(cluster)


def test_it_is_deposed_when_it_hangs(beats: MakeBeats) -> None:
    entries = {**ENTRIES, "hanging": {"seconds": 0.6, "hanging": True}}
    cluster = beats(entries, conf={**CONF, "highlander_progress_timeout": 2.0})
    cluster.start_consumer(conf={"highlander_beat": False})
    hanging = start_worker(cluster, env={"HIGHLANDER_ARENA_FAILS": "1"})
    assert cluster.active() is hanging
    wait_until(cluster.runs, LIMIT, "a run")
    healthy = start_worker(cluster)
    token = cluster.token("beat")
    assert cluster.active(other_than=token) is healthy
    runs_more(cluster, 12)
    runs = cluster.runs()
    assert executions.doubled(runs) == {}
    assert executions.missing(runs, {name: fields["seconds"] for name, fields in entries.items()}) == {}
    assert hanging.is_running
    assert "no progress" in hanging.log


@pytest.mark.slow
def test_beats_of_both_shapes_are_one(beats: MakeBeats) -> None:
    cluster, active = two_workers(beats)
    alone = cluster.start_beat()
    wait_until(lambda: "lock session open" in alone.log, LIMIT, "a standby beat")
    for worker in [worker for worker in cluster.workers[1:] if worker not in (alone, active)]:
        worker.send(signal.SIGTERM)
        worker.wait()
    token = cluster.token("beat")
    pid = beat_process(active)
    os.kill(active.pid, signal.SIGKILL)
    assert cluster.active(other_than=token) is alone
    assert not processes.is_alive(pid)
    runs_more(cluster, 12)
    judge(cluster)
