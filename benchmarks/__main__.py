"""`python -m benchmarks`: measures everything on servers of its own, and writes results.md; about 15 minutes."""

from __future__ import annotations

import argparse
import datetime as dt
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import failover, idle, naive, numbers
from benchmarks.numbers import Distribution
from tests.arena.servers import Postgres, Redis

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.failover import Failovers
    from benchmarks.idle import Cost

RESULTS = Path(__file__).with_name("results.md")
MEDIAN_GOAL, MAXIMUM_GOAL = 0.020, 0.100
MEMORY_GOAL, CPU_GOAL, STATEMENTS_GOAL = 50 * 2**20, 0.005, 3.0
SIZES = (1, 50, 1000)

CASES = (
    ("SIGTERM, 3 workers", signal.SIGTERM, 3),
    ("kill -9, 3 workers", signal.SIGKILL, 3),
    ("kill -9, 2 workers", signal.SIGKILL, 2),
)

FAILOVER_METHOD = """\
Method: real `celery worker -X highlander` processes, default settings, the queue `highlander` and one singleton
process; after each run a new worker is started and waited for. *Told to act* is the keeper's own trace
(`HIGHLANDER_TRACE`), *first line* the journal of the singleton process, both on the boot-time clock. The goals are
judged from the signal for SIGTERM, and for `kill -9` from the death, which is when the old keeper noticed it first: the
kernel needs its time (the floor) to take a process down. With two workers the survivor has its fair share already, and
takes the rest once it sees that it is alone."""

IDLE_METHOD = """\
Method: one worker leads so many singleton queues, another one stands by; default settings, {seconds:g} s without work.
Memory from smaps_rollup, CPU from /proc/pid/stat, statements counted per backend in the log of an own PostgreSQL with
log_statement=all. Where there are singleton processes, a launcher that has the application loaded is added."""


def _ratios(ours: float, polling: float, expiring: float) -> str:
    return (
        f"- Ratios of medians after kill -9, from the signal: polling takes {polling / ours:.1f} times as long, a lock "
        f"with a time to live {expiring / ours:.0f} times."
    )


def _verdict(*, met: bool) -> str:
    return "met" if met else "**missed**"


def failover_section(runs: int) -> tuple[str, int]:
    """Measure the failovers; return the section, and how many overlaps there were."""
    found: dict[str, Failovers] = {}
    with Postgres() as postgres, Redis() as redis:
        for title, number, workers in CASES:
            print(f"{title}: {runs} runs", flush=True)
            found[title] = failover.measure(postgres, redis, number, workers, runs)
        print(f"naive baselines: {runs} and {max(2, runs // 3)} runs", flush=True)
        polling = failover.measure_naive(postgres, "poll", signal.SIGKILL, runs)
        expiring = failover.measure_naive(postgres, "ttl", signal.SIGKILL, max(2, runs // 3))
    floor = numbers.dying()
    rows, goals = [], []
    for title, result in found.items():
        told = Distribution.of(result.told)
        rows.append([f"{title}: told to act, from the signal", *told.cells()])
        judged = told
        if result.told_after_death:
            judged = Distribution.of(result.told_after_death)
            rows.append([f"{title}: told to act, from the death that the keeper saw", *judged.cells()])
        rows.append(
            [f"{title}: first line of the new process, from the signal", *Distribution.of(result.at_work).cells()]
        )
        median = _verdict(met=judged.median <= MEDIAN_GOAL)
        maximum = _verdict(met=judged.maximum <= MAXIMUM_GOAL)
        goals.append(f"- {title}: median at most {MEDIAN_GOAL * 1000:.0f} ms {median}, maximum at most "
                     f"{MAXIMUM_GOAL * 1000:.0f} ms {maximum}; overlaps: {result.overlaps}.")  # fmt: skip
    rows.append(["floor: kill -9 of an idle Python with Celery loaded, until it is dead", *floor.cells()])
    rows.append([f"baseline: advisory lock, polled every {naive.POLL_INTERVAL:g} s, kill -9", *polling.cells()])
    rows.append([f"baseline: lease of {naive.TTL:g} s alone (TTL lock), kill -9", *expiring.cells()])
    ours = Distribution.of(found["kill -9, 3 workers"].told).median
    text = [
        "## Failover time (milliseconds)",
        "",
        numbers.table(("", *numbers.HEAD), rows),
        "",
        *goals,
        _ratios(ours, polling.median, expiring.median),
        "",
        FAILOVER_METHOD,
    ]
    return "\n".join(text), sum(result.overlaps for result in found.values())


def idle_section(seconds: float) -> str:
    """Measure the idle cost; return the section."""
    costs = []
    for size in SIZES:
        print(f"idle cost of {size} singletons: {seconds:g} s", flush=True)
        with Redis() as redis:
            costs += idle.measure(redis, size, seconds)
    rows = [
        [
            f"{cost.role} of {cost.singletons:,}" if cost.role == "leader" else f"standby for {cost.singletons:,}",
            f"{cost.rss / 2**20:.1f}",
            f"{cost.pss / 2**20:.1f}",
            f"{cost.cpu * 100:.2f} %",
            f"{cost.statements:.2f}",
            str(cost.connections),
        ]
        for cost in costs
    ]
    head = ("node", "RSS MiB", "PSS MiB", "CPU of one core", "statements/s", "connections")
    method = IDLE_METHOD.format(seconds=seconds)
    return "\n".join(
        ["## Idle cost of a node's keeper", "", numbers.table(head, rows), "", *_idle_goals(costs), "", method]
    )


def _idle_goals(costs: Sequence[Cost]) -> list[str]:
    memory = max(cost.rss for cost in costs)
    statements = max(cost.statements for cost in costs)
    cpu = {size: max(cost.cpu for cost in costs if cost.singletons == size) for size in SIZES}
    by_size = ", ".join(
        f"{size:,}: {value * 100:.2f} % {_verdict(met=value <= CPU_GOAL)}" for size, value in cpu.items()
    )
    fits, mebi = _verdict(met=memory <= MEMORY_GOAL), 2**20
    return [
        f"- Memory at most {MEMORY_GOAL / mebi:.0f} MiB resident: {memory / mebi:.1f} {fits}.",
        f"- CPU at most {CPU_GOAL * 100:.1f} % of a core, by the number of singletons: {by_size}.",
        f"- Statements at most {STATEMENTS_GOAL:g} a second: {statements:.2f} "
        + _verdict(met=statements <= STATEMENTS_GOAL)
        + ".",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; return 1 if two were ever at work at once."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--runs", type=int, default=30, help="failovers of each kind (default: 30)")
    parser.add_argument("--idle-seconds", type=float, default=60.0, help="for each number of singletons (default: 60)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    reason = Postgres.available() or Redis.available()
    if reason:
        parser.error(reason)
    started_at = dt.datetime.now(dt.timezone.utc)
    load_before = numbers.load()
    oversleeping = numbers.oversleeping()
    with Postgres() as postgres:
        server = str(postgres.execute("show server_version")[0][0]).split()[0]
    failovers, overlaps = failover_section(options.runs)
    idling = idle_section(options.idle_seconds)
    late = f"{oversleeping.median * 1000:.2f} ms (median), {oversleeping.maximum * 1000:.2f} ms (maximum)"
    noise = f"load average {load_before} before, {numbers.load()} after; a sleep of 5 ms ended late by {late}"
    text = "\n".join(
        [
            "# Benchmark results",
            "",
            f"Made by `make bench` on {started_at:%Y-%m-%d, %H:%M} UTC; do not edit.",
            "",
            f"- Machine: {numbers.machine()}",
            f"- Versions: {numbers.versions()}, PostgreSQL {server} (fsync off), Redis as the broker",
            f"- Noise: {noise}",
            "",
            failovers,
            "",
            idling,
            "",
        ]
    )
    options.output.write_text(text)
    print(text)
    return 1 if overlaps else 0


if __name__ == "__main__":
    raise SystemExit(main())
