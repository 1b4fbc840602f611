"""The section on beats: its tables, and what is judged."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from benchmarks import beat, numbers
from benchmarks.beat import BURST, OURS, PERSISTENT, REDBEAT, SCHEDULERS, SIZES
from benchmarks.numbers import Distribution
from tests.arena.servers import Postgres, Redis

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.beat import Lateness, Takeovers, Throughput

JUDGED = 1_000  # entries at which lateness and memory are judged
LATENESS_GOAL, MEMORY_GOAL, TAKEOVER_GOAL = 1.5, 1.3, 0.100
MEBI = 2**20

METHOD = f"""\
Method: one beat after another, on the same Redis broker (and PostgreSQL): `HighlanderScheduler` with its ledger and
default settings, `celery.beat.PersistentScheduler`, and RedBeat with its defaults and `redbeat_redis_url` on the
broker's server. *Sustained*: {beat.DUE_RATE:,.0f} ticks a second are due, evenly; what arrives in the broker is counted
for {beat.SUSTAINED_SECONDS:g} s, and the beat's own CPU. *Late*: {beat.LOAD:g} ticks a second are due, evenly (so that
10,000 entries have an interval of 200 s), for {beat.LATENESS_SECONDS:g} s; from the instant at which a tick is due
until the broker has it, noted in the beat by Celery's signals. An entry begins with the same `last_run_at` for all
three, so its first tick is due at the same known instant. After that each is judged by its own rule: Highlander's ticks
keep their grid, and each message says when it was due; the others count the interval from when they last began to
publish. What that adds up to is the *drift*: how far an entry is behind its grid in the end (the median, where entries
tick more than once in that time). *All at once*: {BURST:,} entries are due in one instant; until the broker has them
all. RSS and PSS are the beat's own, after the ticks of *late*; Highlander's keeper is a process beside it. The beats
run without Celery's command line, which would import the plugin for each of them."""

TAKEOVER_METHOD = f"""\
Takeovers: {beat.BEATS} beats, default settings, {beat.TAKEOVER_ENTRIES} entries with an interval of
{beat.TAKEOVER_INTERVAL:g} s, evenly spread, so that there is a tick to publish at once; from the signal to the active
one until the broker has the first tick of the next one. *Told to act* is the keeper's own trace."""


def _verdict(*, met: bool) -> str:
    return "met" if met else "**missed**"


def section(runs: int) -> tuple[str, int]:
    """Measure beats; return the section, and how many overlaps there were."""
    with Postgres() as postgres, Redis() as redis:
        database = postgres.create_database("beats")
        rates, late, bursts = {}, {}, {}
        for size in SIZES:
            for scheduler in SCHEDULERS:
                print(f"{scheduler} with {size:,} entries", flush=True)
                rates[scheduler, size] = beat.sustained(database, redis, scheduler, size)
                late[scheduler, size] = beat.lateness(database, redis, scheduler, size)
        for scheduler in SCHEDULERS:
            print(f"{scheduler}: {BURST:,} entries at once", flush=True)
            bursts[scheduler] = max(beat.lateness(database, redis, scheduler, BURST, spread=False).late)
        found = {}
        for number in (signal.SIGTERM, signal.SIGKILL):
            print(f"takeover of a beat after {number.name}: {runs} runs", flush=True)
            found[number] = beat.takeovers(database, redis, number, runs)
    text = [
        "## Singleton beat",
        "",
        _table(rates, late),
        "",
        f"All of {BURST:,} entries at once: "
        + ", ".join(f"{scheduler} {seconds:.2f} s" for scheduler, seconds in bursts.items())
        + ".",
        "",
        "Takeover to the first tick (milliseconds):",
        "",
        _takeover_table(found),
        "",
        *_goals(rates, late, found),
        "",
        METHOD,
        "",
        TAKEOVER_METHOD,
    ]
    return "\n".join(text), sum(result.overlaps for result in found.values())


def _table(rates: Mapping[tuple[str, int], Throughput], late: Mapping[tuple[str, int], Lateness]) -> str:
    head = ("entries, scheduler", "sustained ticks/s", "CPU ms/tick", "late ms: median", "p99", "drift ms", "RSS MiB",
            "PSS MiB", "keeper RSS, PSS")  # fmt: skip
    rows = []
    for (scheduler, size), rate in rates.items():
        found = late[scheduler, size]
        spread = Distribution.of(found.late)
        keeper = found.keeper
        rows.append([
            f"{size:,}, {scheduler}",
            f"{rate.rate:,.0f}",
            f"{rate.cpu * 1000:.2f}",
            f"{spread.median * 1000:,.1f}",
            f"{spread.percentile(99) * 1000:,.1f}",
            "" if found.drift is None else f"{found.drift * 1000:,.0f}",
            f"{found.beat.rss / MEBI:.0f}",
            f"{found.beat.pss / MEBI:.0f}",
            "" if keeper is None else f"{keeper.rss / MEBI:.0f}, {keeper.pss / MEBI:.0f}",
        ])  # fmt: skip
    return numbers.table(head, rows)


def _takeover_table(found: Mapping[signal.Signals, Takeovers]) -> str:
    rows = []
    for number, result in found.items():
        name = "kill -9" if number is signal.SIGKILL else number.name
        rows.append([f"{name}: told to act", *Distribution.of(result.told).cells()])
        rows.append([f"{name}: first tick published", *Distribution.of(result.published).cells()])
    return numbers.table(("", *numbers.HEAD), rows)


def _goals(
    rates: Mapping[tuple[str, int], Throughput],
    late: Mapping[tuple[str, int], Lateness],
    found: Mapping[signal.Signals, Takeovers],
) -> list[str]:
    ratios = {size: rates[OURS, size].rate / rates[REDBEAT, size].rate for size in SIZES}
    p99 = {name: Distribution.of(late[name, JUDGED].late).percentile(99) for name in (OURS, PERSISTENT)}
    lateness = p99[OURS] / p99[PERSISTENT]
    memory = late[OURS, JUDGED].beat.rss / late[PERSISTENT, JUDGED].beat.rss
    by_size = ", ".join(f"{size:,}: {ratio:.1f} times {_verdict(met=ratio >= 1)}" for size, ratio in ratios.items())
    close, small = _verdict(met=lateness <= LATENESS_GOAL), _verdict(met=memory <= MEMORY_GOAL)
    than = "times PersistentScheduler's"
    goals = [
        f"- Not slower than RedBeat, by the number of entries: {by_size}.",
        f"- Lateness (p99) with {JUDGED:,} entries at most {LATENESS_GOAL:g} {than}: {lateness:.2f} {close}.",
        f"- RSS of the beat with {JUDGED:,} entries at most {MEMORY_GOAL:g} {than}: {memory:.2f} {small}.",
    ]
    for number, result in found.items():
        median = Distribution.of(result.published).median
        goals.append(
            f"- Takeover after {number.name}: median at most {TAKEOVER_GOAL * 1000:.0f} ms "
            f"{_verdict(met=median <= TAKEOVER_GOAL)}; overlaps: {result.overlaps}."
        )
    return goals
