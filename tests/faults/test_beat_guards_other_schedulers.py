"""The active beat ends while it guards another scheduler, with a storage of its own and without the ledger.

What is promised then: only the leader sends, and only the leader touches the storage; what was sent is in the storage
before the next entry is looked at, and the next leader begins with it. So no entry is sent before its interval has
passed, and the storage counts exactly what was sent. One case is excepted: a beat that is killed (or paused for longer
than its lease) between a publication and its record, a few milliseconds. The next leader sends that tick again.
"""

from __future__ import annotations

import itertools
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from celery_highlander.clock import boot_time
from tests.arena import processes
from tests.arena.storages import STORAGES, DatabaseStorage
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from tests.arena.beats import BeatCluster
    from tests.arena.cluster import Worker
    from tests.arena.storages import Storage
    from tests.faults.conftest import MakeBeats

pytestmark = [pytest.mark.fault, pytest.mark.postgres, pytest.mark.redis]

LIMIT = 40.0
INTERVALS = {"every-2": 2, "every-3": 3}
TOLERANCE = 1.0
"""How much earlier than its interval a run may follow: workers start them when they get round to it."""

KINDS = pytest.mark.parametrize("kind", list(STORAGES))


def guarding(beats: MakeBeats, storage: Storage, *, struck: bool = False, **conf: Any) -> BeatCluster:
    """A cluster with entries and a worker, without a beat."""
    cluster = beats({})
    scheduler = storage.struck if struck else storage.scheduler
    more = {"highlander_beat_scheduler": scheduler, "result_expires": None, "highlander_priority": 0}
    cluster.conf.update(more | storage.conf(cluster.url) | conf)
    storage.put(cluster, INTERVALS)
    if isinstance(storage, DatabaseStorage):
        storage.record_writes(cluster)
    cluster.start_consumer()
    return cluster


def start_beat(cluster: BeatCluster, storage: Storage, name: str, *, file: str = "schedule", **more: Any) -> Worker:
    """Start a beat, whose connections to its storage bear the name."""
    env = {"PGAPPNAME": name, **more.pop("env", {})}
    if storage.scheduler.startswith("django"):
        env["DJANGO_SETTINGS_MODULE"] = "tests.arena.django_project"
    return cluster.start_beat("-s", str(cluster.directory / file), env=env, **more)


def runs_of(cluster: BeatCluster, entry: str) -> list[int]:
    return [run.at for run in cluster.runs() if run.entry == entry]


def runs_more(cluster: BeatCluster, count: int = 2, entries: tuple[str, ...] = tuple(INTERVALS)) -> None:
    """Wait until each of these entries has run so many more times."""
    goals = {entry: len(runs_of(cluster, entry)) + count for entry in entries}
    wait_until(
        lambda: all(len(runs_of(cluster, entry)) >= goal for entry, goal in goals.items()), LIMIT, f"runs up to {goals}"
    )


def is_recorded(cluster: BeatCluster, storage: Storage) -> bool:
    """Whether the storage counts what ran."""
    counts = storage.counts(cluster)
    return all(counts.get(entry) == len(runs_of(cluster, entry)) for entry in INTERVALS)


def is_quiet(cluster: BeatCluster) -> bool:
    """Whether the last run is so long ago, and the next one so far, that none is between publication and record."""
    return 0.3 < boot_time() - max(run.at for run in cluster.runs()) / 1e9 < 0.6  # one each second


def judge(cluster: BeatCluster, storage: Storage, *, doubled: int = 0) -> None:
    """End all beats; nothing ran too early, and all but `doubled` runs are on record."""
    for beat in cluster.workers:
        if beat.name.startswith("b") and beat.is_running:
            beat.send(signal.SIGTERM)
            assert beat.wait() == 0
    counts = storage.counts(cluster)

    def extra() -> int:
        return sum(len(runs_of(cluster, entry)) - counts[entry] for entry in INTERVALS)

    wait_until(lambda: extra() >= doubled, LIMIT, "what was sent to have run")
    assert extra() == doubled
    if not doubled:
        for entry, seconds in INTERVALS.items():
            runs = runs_of(cluster, entry)
            gaps = [(later - earlier) / 1e9 for earlier, later in itertools.pairwise(runs)]
            assert min(gaps) > seconds - TOLERANCE, (entry, gaps)
    assert "Traceback" not in "".join(beat.log for beat in cluster.workers)


def writers(cluster: BeatCluster) -> list[str]:
    """Who wrote to the storage, one after the other."""
    found: list[str] = []
    for (by,) in cluster.query("select by from written where by in ('first', 'second', 'third') order by id"):
        if found[-1:] != [by]:
            found.append(by)
    return found


def strike(how: str, beat: Worker) -> None:
    if how == "kill -9":
        os.kill(beat.pid, signal.SIGKILL)
    else:
        beat.send(getattr(signal, how))


HOW = pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("django", "kill -9"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("django", "SIGTERM"),
                *((kind, how) for kind in ("file", "sqlalchemy") for how in ("SIGTERM", "kill -9")),
            ]
        ),
    ],
)


@pytest.mark.slow
@HOW
def test_the_next_leader_begins_with_what_the_storage_says_after(beats: MakeBeats, kind: str, how: str) -> None:
    storage = STORAGES[kind]
    cluster = guarding(beats, storage)
    first = start_beat(cluster, storage, "first")
    assert cluster.active() is first
    second = start_beat(cluster, storage, "second")
    third = start_beat(cluster, storage, "third", file="schedule-of-third", conf={"highlander_priority": -1})
    wait_until(lambda: all("lock session open" in beat.log for beat in (second, third)), LIMIT, "two standbys")
    runs_more(cluster)
    wait_until(lambda: is_quiet(cluster) and is_recorded(cluster, storage), LIMIT, "what ran to be on record")
    token = cluster.token("beat")
    strike(how, first)
    assert cluster.active(other_than=token) is second
    if isinstance(storage, DatabaseStorage):
        storage.put(cluster, {"every-3": 0})
        runs_more(cluster, 3, ("every-2",))  # an edit is looked for every 5 s
        before = len(runs_of(cluster, "every-3"))
        runs_more(cluster, 2, ("every-2",))
        assert len(runs_of(cluster, "every-3")) == before
        assert writers(cluster) == ["first", "second"]
    else:
        runs_more(cluster)
        assert not list(cluster.directory.glob("schedule-of-third*"))
    judge(cluster, storage)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["django", "sqlalchemy"])
def test_the_active_beat_follows_an_edited_interval(beats: MakeBeats, kind: str) -> None:
    storage = STORAGES[kind]
    cluster = guarding(beats, storage)
    for name in ("first", "second", "third"):
        start_beat(cluster, storage, name)
    runs_more(cluster)
    storage.put(cluster, {"every-2": 60})
    runs_more(cluster, 1, ("every-3",))
    before = len(runs_of(cluster, "every-2"))
    storage.put(cluster, {"every-3": 1})
    runs_more(cluster, 6, ("every-3",))
    assert len(runs_of(cluster, "every-2")) == before


def struck(beats: MakeBeats, kind: str, how: str, **conf: Any) -> tuple[BeatCluster, Worker, int]:
    """A cluster of which the active beat has been struck, that beat, and its term."""
    storage = STORAGES[kind]
    cluster = guarding(beats, storage, struck=True, **conf)
    first = start_beat(cluster, storage, "first", env={"HIGHLANDER_ARENA_STRIKE": how})
    assert cluster.active() is first
    token = cluster.token("beat")
    start_beat(cluster, storage, "second")
    path = cluster.journals / "struck"
    wait_until(lambda: path.exists() and path.read_text(), LIMIT, "the strike")
    return cluster, first, token


@pytest.mark.slow
@KINDS
@pytest.mark.parametrize(
    ("how", "doubled"),
    [("reserved SIGKILL", 0), ("published SIGKILL", 1), ("reserved SIGTERM", 0), ("published SIGTERM", 0)],
)
def test_a_tick_is_never_lost_and_doubled_only_by_a_kill_before_its_record(
    beats: MakeBeats, kind: str, how: str, doubled: int
) -> None:
    cluster, _, token = struck(beats, kind, how)
    cluster.active(other_than=token)
    runs_more(cluster)
    judge(cluster, STORAGES[kind], doubled=doubled)


@pytest.mark.slow
@KINDS
def test_a_beat_that_was_paused_before_it_wrote_does_not_write_any_more(beats: MakeBeats, kind: str) -> None:
    """Its keeper is paused with it, as by a hypervisor: nobody can kill it in time."""
    storage = STORAGES[kind]
    cluster, paused, token = struck(beats, kind, "published SIGSTOP", highlander_on_stuck="continue")
    keeper = paused.keeper
    os.kill(keeper, signal.SIGSTOP)
    cluster.active(other_than=token)
    runs_more(cluster)
    seen = [storage.counts(cluster)]
    os.kill(paused.pid, signal.SIGCONT)

    def look() -> None:
        seen.append(storage.counts(cluster) or seen[-1])

    def stood_down() -> bool:
        look()
        return "lost 'beat'" in paused.log or not paused.is_running

    wait_until(stood_down, LIMIT, "the end of the paused one's term")
    processes.send(keeper, signal.SIGCONT)
    goal = len(cluster.runs()) + 2

    def goes_on() -> bool:
        look()
        return len(cluster.runs()) >= goal

    wait_until(goes_on, LIMIT, "runs")
    for earlier, later in itertools.pairwise(seen):
        assert all(later[entry] >= earlier[entry] for entry in INTERVALS), (earlier, later)
    if isinstance(storage, DatabaseStorage):
        assert writers(cluster) == ["first", "second"]
    judge(cluster, storage, doubled=1)
