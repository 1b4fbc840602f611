"""`python -m benchmarks`: measures everything on servers of its own, and writes results.md; about an hour.

With `--only` it measures some of the sections, and leaves the others in the file as they are.
"""

from __future__ import annotations

import argparse
import datetime as dt
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import beat_section, consuming, failover, idle, naive, nodes, numbers, outages, task_section
from benchmarks.numbers import Distribution
from tests.arena.servers import Postgres, RabbitMQ, Redis

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.failover import Failovers
    from benchmarks.idle import Cost

RESULTS = Path(__file__).with_name("results.md")
MEDIAN_GOAL, MAXIMUM_GOAL = 0.020, 0.100
MEMORY_GOAL, CPU_GOAL, STATEMENTS_GOAL = 50 * 2**20, 0.005, 3.0
SIZES = (1, 50, 1000)
CLUSTERS = (1, 10, 200)
CONSUMED_GOALS = {"rabbitmq": 0.050, "redis": 1.0}

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


OUTAGE_METHOD = """\
Method: two workers, each with a way of its own to PostgreSQL through a TCP proxy; default settings; from the fault to
the keeper's own note that somebody acts again, the old leader included. The bound is lease + poll interval + 0.5 s.
Where nobody could leave a stopped mark, the successor waits for the dead leader's lease, counted from when it saw the
last heartbeat; after a restart of the server it waits a whole lease from when it is connected again."""

CONSUMING_METHOD = """\
Method: two workers, the queue `highlander` alone, default settings. The leader, idle, is killed (SIGKILL), and a
message is sent at once; from the death that the leader's keeper saw to the start of the task on the next leader. On
RabbitMQ the broker pushes the message as soon as the new leader consumes. On Redis a singleton queue is looked at every
50 ms while it is empty, and that is most of what is left of it."""

NODES_METHOD = """\
Method: keepers with default settings and without workers, all for one singleton, {seconds:g} s without an event; CPU of
one core from /proc/pid/stat, statements as transactions from pg_stat_database."""


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


def outage_section(runs: int) -> tuple[str, int]:
    """Measure the takeovers that have to wait; return the section, and how many overlaps there were."""
    rows, goals, overlaps = [], [], 0
    for case in outages.CASES:
        print(f"{case}: {runs} runs", flush=True)
        with Postgres() as postgres, Redis() as redis:
            found = outages.measure(postgres, redis, case, runs)
        told = Distribution.of(found.told)
        rows.append([case, *told.cells()])
        met = _verdict(met=told.maximum <= outages.BOUND)
        goals.append(f"- {case}: maximum at most {outages.BOUND:g} s {met}; overlaps: {found.overlaps}.")
        overlaps += found.overlaps
    text = ["## Takeovers that wait (milliseconds)", "", numbers.table(("", *numbers.HEAD), rows), "", *goals, ""]
    return "\n".join([*text, OUTAGE_METHOD]), overlaps


def consuming_section(runs: int) -> tuple[str, int]:
    """Measure how soon the next leader of a queue runs a message; return the section, and how many overlaps."""
    rows, goals, overlaps = [], [], 0
    for kind, goal in CONSUMED_GOALS.items():
        print(f"first message on {kind}: {runs} runs", flush=True)
        with Postgres() as postgres, RabbitMQ() if kind == "rabbitmq" else Redis() as broker:
            values, doubled = consuming.measure(postgres, broker, runs)
        found = Distribution.of(values)
        rows.append([kind, *found.cells()])
        goals.append(
            f"- {kind}: median at most {goal * 1000:.0f} ms {_verdict(met=found.median <= goal)}; overlaps: {doubled}."
        )
        overlaps += doubled
    text = ["## First message of the next leader (milliseconds)", "", numbers.table(("", *numbers.HEAD), rows), ""]
    return "\n".join([*text, *goals, "", CONSUMING_METHOD]), overlaps


def nodes_section(seconds: float) -> str:
    """Measure whole clusters at rest; return the section."""
    rows = []
    for number in CLUSTERS:
        print(f"{number} nodes at rest: {seconds:g} s", flush=True)
        rest = nodes.measure(number, seconds)
        cells = (f"{rest.keeper_cpu * 100:.1f} %", f"{rest.server_cpu * 100:.1f} %", f"{rest.statements:.1f}")
        rows.append([f"{rest.nodes}", *cells, f"{rest.connections}"])
    head = ("nodes", "CPU of all keepers", "CPU of PostgreSQL", "statements/s", "connections")
    method = NODES_METHOD.format(seconds=seconds)
    return "\n".join(["## A cluster at rest", "", numbers.table(head, rows), "", method])


SECTIONS = ("failover", "outages", "consuming", "beat", "tasks", "idle", "nodes")


def _measure(section: str, runs: int, seconds: float) -> tuple[str, int]:
    match section:
        case "failover":
            return failover_section(runs)
        case "outages":
            return outage_section(runs)
        case "consuming":
            return consuming_section(runs)
        case "beat" | "tasks":
            measured = beat_section.section if section == "beat" else task_section.section
            return measured(runs)
        case "idle":
            return idle_section(seconds), 0
        case _:
            return nodes_section(seconds), 0


def _old_sections(path: Path) -> dict[str, str]:
    """The sections of an earlier run, by their headings."""
    text = path.read_text() if path.exists() else ""
    return {part.partition("\n")[0]: part.strip() for part in re.split(r"^(?=## )", text, flags=re.MULTILINE)[1:]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; return 1 if two were ever at work at once."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--runs", type=int, default=30, help="failovers of each kind (default: 30)")
    parser.add_argument("--idle-seconds", type=float, default=60.0, help="for each number of singletons (default: 60)")
    parser.add_argument("--only", choices=SECTIONS, nargs="+", default=SECTIONS, help="sections to measure")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    reason = Postgres.available() or Redis.available() or RabbitMQ.available()
    if reason:
        parser.error(reason)
    with Postgres() as postgres:
        server = str(postgres.execute("show server_version")[0][0]).split()[0]
    sections, overlaps, result = _old_sections(options.output), 0, ""
    for section in options.only:
        started_at, load_before, oversleeping = dt.datetime.now(dt.timezone.utc), numbers.load(), numbers.oversleeping()
        text, doubled = _measure(section, options.runs, options.idle_seconds)
        late = f"{oversleeping.median * 1000:.2f} ms (median), {oversleeping.maximum * 1000:.2f} ms (maximum)"
        made = [
            f"Made on {started_at:%Y-%m-%d, %H:%M} UTC with {numbers.versions()}, PostgreSQL {server} (fsync off).",
            f"Noise: load average {load_before} before, {numbers.load()} after; a sleep of 5 ms ended late by {late}.",
        ]
        sections[text.partition("\n")[0]] = "\n".join([text, "", *made])
        overlaps += doubled
        head = ["# Benchmark results", "", "Made by `make bench`; do not edit.", "", f"Machine: {numbers.machine()}."]
        result = "\n\n".join(["\n".join(head), *sections.values()]) + "\n"
        options.output.write_text(result)
    print(result)
    return 1 if overlaps else 0


if __name__ == "__main__":
    raise SystemExit(main())
