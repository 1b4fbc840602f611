"""What a beat can do, beside other schedulers: ticks per second, how late a tick is, memory; and its takeovers."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.beat_shop import FIRST, QUEUE
from benchmarks.failover import DEFAULTS, read_trace
from benchmarks.idle import cpu_seconds, memory
from celery_highlander.clock import boot_time
from tests.arena.beats import BEAT, BeatCluster
from tests.arena.cluster import ROOT, Worker
from tests.arena.processes import make_directory
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.arena.servers import Database, Redis

OURS = "highlander"
PERSISTENT, REDBEAT = "PersistentScheduler", "RedBeat"
SCHEDULERS = {
    OURS: "highlander",
    PERSISTENT: "celery.beat:PersistentScheduler",
    REDBEAT: "redbeat.RedBeatScheduler",
}
SIZES = (10, 1_000, 10_000)
DUE_RATE = 10_000.0  # ticks a second, far more than anybody sends
LOAD = 50.0  # ticks a second at which lateness is measured
SUSTAINED_SECONDS = 6.0
LATENESS_SECONDS = 10.0
BURST = 1_000  # entries that are due in the same instant
BEATS = 3
TAKEOVER_ENTRIES, TAKEOVER_INTERVAL = 20, 0.1  # one is due every 5 ms
SETTLE = 0.5  # seconds of rest before each takeover, when the new beat stands by
QUIET = 0.4  # seconds after the signal without a look


class _Beats(BeatCluster):
    def run(self, scheduler: str, entries: dict[str, Any], *, notes: bool = True, trace: Path | None = None) -> Worker:
        """Start a beat of `benchmarks.beat_shop` with such entries."""
        name = f"b{next(self._numbers)}"
        argv = [sys.executable, "-m", "benchmarks.beat_shop", SCHEDULERS[scheduler], str(self.directory / "schedule")]
        env = {"HIGHLANDER_BENCHMARK_ENTRIES": json.dumps(entries)}
        if notes:
            env["HIGHLANDER_BENCHMARK_NOTES"] = str(self.journals)
        if trace is not None:
            env["HIGHLANDER_TRACE"] = str(trace)
        beat = Worker(name, argv, self.environment(env=env), self.directory / f"{name}.log", ROOT)
        self.workers.append(beat)
        return beat


@dataclass(frozen=True, slots=True)
class Published:
    """One publication: of which entry, from when to when (seconds since the epoch), and when it was due if it says."""

    entry: str
    began: float
    ended: float
    due: float | None


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a process; PSS counts shared pages in proportion."""

    rss: int
    pss: int


@dataclass(frozen=True, slots=True)
class Throughput:
    """Ticks per second, and the beat's own CPU seconds for each."""

    rate: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Lateness:
    """How late ticks were, in seconds.

    Attributes:
        late: each tick, from the instant at which it is due by its scheduler's own rule.
        drift: by how much the entries lag behind their grid in the end, the median; None where each ticked once.
        beat, keeper: memory.
    """

    late: tuple[float, ...]
    drift: float | None
    beat: Memory
    keeper: Memory | None


def read(directory: Path, since: float = 0.0) -> dict[int, list[Published]]:
    """Return what each beat published, by its pid."""
    found: dict[int, list[Published]] = {}
    for path in directory.glob("published.*"):
        rows = [line.split(" ") for line in path.read_text().rpartition("\n")[0].splitlines()]
        notes = [
            Published(
                entry, float(began), float(ended), datetime.fromisoformat(due).timestamp() if due != "-" else None
            )
            for entry, began, ended, due in rows
        ]
        found[int(path.suffix[1:])] = [note for note in notes if note.ended >= since]
    return found


def _cluster(database: Database, redis: Redis) -> _Beats:
    """Make a cluster without entries; its first leader need not wait for a lease if there was one before."""
    redis.command("FLUSHALL")
    if database.execute("select to_regclass('highlander_entry')")[0][0] is not None:
        database.execute("truncate highlander_entry, highlander_tick")
    conf = {**DEFAULTS, "redbeat_redis_url": redis.url(1), "timezone": "UTC"}
    return _Beats(database.url(), {"broker_url": redis.url()}, make_directory("benchmark"), {}, conf)


def _end(cluster: _Beats) -> None:
    for beat in cluster.workers:
        beat.send(signal.SIGTERM)
        beat.wait()


def sustained(database: Database, redis: Redis, scheduler: str, size: int) -> Throughput:
    """Let more be due than can be sent; count what arrives in the broker."""

    def arrived() -> int:
        return int(redis.command("LLEN", QUEUE).strip().lstrip(":"))

    with _cluster(database, redis) as cluster:
        entries = {"count": size, "interval": size / DUE_RATE, "start": time.time(), "spread": True}
        beat = cluster.run(scheduler, entries, notes=False)
        wait_until(lambda: arrived() > 1, 120, "the first ticks")
        time.sleep(1.0)
        begun, before, used = time.monotonic(), arrived(), cpu_seconds(beat.pid)
        time.sleep(SUSTAINED_SECONDS)
        count, cpu = arrived() - before, cpu_seconds(beat.pid) - used
        found = Throughput(count / (time.monotonic() - begun), cpu / count)
        _end(cluster)
        return found


def lateness(database: Database, redis: Redis, scheduler: str, size: int, *, spread: bool = True) -> Lateness:
    """Let `LOAD` ticks a second be due, or all entries in one instant; see how late each one is published."""
    interval = size / LOAD if spread else 3600.0
    lead = 6.0 + size / 1_000 * (2.0 if scheduler == REDBEAT else 0.6)
    with _cluster(database, redis) as cluster:
        start = time.time() + lead
        beat = cluster.run(scheduler, {"count": size, "interval": interval, "start": start, "spread": spread})
        wait_until(lambda: any(read(cluster.journals).values()), 120, "the first tick")
        if time.time() > start:
            raise RuntimeError(f"{scheduler} took more than {lead:g} s to start with {size} entries")
        end = start + (LATENESS_SECONDS if spread else 1.0)
        time.sleep(end - time.time())
        if not spread:
            wait_until(lambda: len(read(cluster.journals)[beat.pid]) > size, 120, "all ticks")
        usage = memory(beat.pid)
        keeper = memory(beat.keeper) if scheduler == OURS else None
        notes = [note for note in read(cluster.journals)[beat.pid] if note.entry != FIRST]
        _end(cluster)
    late, drift = _judge(notes, size, interval if spread else 0.0, interval, start)
    return Lateness(
        tuple(late),
        drift,
        Memory(usage["Rss"], usage["Pss"]),
        Memory(keeper["Rss"], keeper["Pss"]) if keeper else None,
    )


def _judge(
    notes: list[Published], size: int, width: float, interval: float, start: float
) -> tuple[list[float], float | None]:
    """Return how late each tick was, and the median of how far the entries were behind their grids in the end."""
    ticks = defaultdict(list)
    for note in notes:
        ticks[note.entry].append(note)
    late, behind = [], []
    for entry, found in ticks.items():
        first = due = start + width * int(entry) / size
        for note in found:
            late.append(note.ended - (due if note.due is None else note.due))
            due = note.began + interval
        if len(found) > 1:
            last = found[-1].ended - first
            behind.append(last - interval * (len(found) - 1))
    return late, sorted(behind)[len(behind) // 2] if behind else None


@dataclass(slots=True)
class Takeovers:
    """Seconds from each signal: to the next beat told to act, and to its first publication."""

    told: list[float] = field(default_factory=list)
    published: list[float] = field(default_factory=list)
    overlaps: int = 0


def takeovers(database: Database, redis: Redis, number: signal.Signals, runs: int) -> Takeovers:
    """End the active one of three beats, `runs` times, default settings."""
    found = Takeovers()
    with _cluster(database, redis) as cluster:
        trace = cluster.directory / "trace"
        entries = {"count": TAKEOVER_ENTRIES, "interval": TAKEOVER_INTERVAL, "start": time.time(), "spread": True}

        def start() -> None:
            cluster.run(OURS, entries, trace=trace)

        for _ in range(BEATS):
            start()
        for _ in range(runs):
            wait_until(lambda: cluster.lock_sessions() == BEATS, 60, "all beats")
            active, token = cluster.active(), cluster.token(BEAT)
            wait_until(partial(_published, cluster, active), 60, "a tick")
            time.sleep(SETTLE)
            sent_at, boot = time.time(), boot_time()
            active.send(number)
            time.sleep(QUIET)
            first = wait_until(partial(_first_of_others, cluster, active, sent_at), 60, "a tick of the next one")
            told = next(noted for noted in read_trace(trace) if noted.event == "start_work" and noted.token > token)
            found.told.append(told.at - boot)
            found.published.append(first.ended - sent_at)
            found.overlaps += any(note.ended > first.began for note in _published(cluster, active))
            active.wait()
            active.close()
            cluster.workers.remove(active)
            redis.command("DEL", QUEUE)
            start()
        _end(cluster)
    return found


def _published(cluster: _Beats, beat: Worker) -> list[Published]:
    return read(cluster.journals).get(beat.pid, [])


def _first_of_others(cluster: _Beats, beat: Worker, since: float) -> Published | None:
    found = [note for pid, notes in read(cluster.journals, since).items() if pid != beat.pid for note in notes]
    return min(found, key=lambda note: note.ended, default=None)
