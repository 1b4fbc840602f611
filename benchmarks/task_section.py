"""The section on guarded tasks: its tables."""

from __future__ import annotations

import statistics
from importlib.metadata import version
from typing import TYPE_CHECKING

from benchmarks import numbers, tasks
from benchmarks.numbers import Distribution
from benchmarks.task_shop import HEIMDALL, OURS, PLAIN, SLOW
from tests.arena.servers import Postgres, Redis

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.tasks import Costs

POOLS = (2, 8)
BURSTS_PER_RUN, ROUNDS_PER_RUN = 0.2, 20
PEER_PACKAGES = ("celery-singleton", "celery-once", "celery-heimdall")

METHOD = f"""\
Method: an empty task, prefork, Redis as the broker and the result backend of all sides; a worker and a sender for each
side, all warm, one side active at a time and in turn. Each call has a key of its own, so nobody waits for a lock of
somebody else's. *Tasks/s*: {tasks.TASKS:,} tasks are sent while the worker consumes nothing; from the start of the
first run to the start of the last one; *CPU* of the worker and all it started, meanwhile. *delay()/s*: that sending,
one call after another. The medians of the bursts; *of plain* is the median of the ratios in the same round. *To the
run*: from `delay()` to the first instruction of the run, one task at a time, worker idle; *to the result*: from there
until the caller has it; *more* is the difference of the medians. {HEIMDALL} waits, as a run begins, up to 1 s
(`unique_lock_timeout`) for the lock that its own `delay()` holds: it runs {tasks.SLOW_WAVES} tasks for each child in a
burst, and takes part in every {tasks.SLOW_SHARE}th round of single tasks; *not blocking* is the same with
`unique_lock_blocking` False. No side is judged here: the tables are for comparison."""


def section(runs: int) -> tuple[str, int]:
    """Measure guarded tasks; return the section, and that there were no overlaps to be seen."""
    bursts, rounds = max(2, round(runs * BURSTS_PER_RUN)), runs * ROUNDS_PER_RUN
    text = ["## Guarded tasks", ""]
    with Postgres() as postgres, Redis() as redis:
        database = postgres.create_database("tasks") if OURS else None
        for children in POOLS:
            print(f"guarded tasks, {children} children: {bursts} bursts, {rounds} single tasks", flush=True)
            found = tasks.measure(redis, database, children, bursts, rounds)
            text += [f"{children} children, throughput ({bursts} bursts of each side):", "", _rates(found), ""]
            text += [f"{children} children, latency of a single task (milliseconds):", "", _latencies(found), ""]
    peers = ", ".join(f"{name} {version(name)}" for name in PEER_PACKAGES)
    return "\n".join([*text, METHOD, "", f"Peers: {peers}."]), 0


def _rates(found: Mapping[str, Costs]) -> str:
    plain = found[PLAIN]
    head = ("", "tasks/s", "from", "to", "of plain", "CPU ms/task", "of plain", "delay()/s", "of plain")
    rows = [
        [
            name,
            *(f"{value:,.{1 if name in SLOW else 0}f}" for value in _shown(costs.rates)),
            _ratio(costs.rates, plain.rates),
            f"{statistics.median(costs.cpu) * 1000:.2f}",
            _ratio(costs.cpu, plain.cpu),
            f"{statistics.median(costs.sends):,.0f}",
            _ratio(costs.sends, plain.sends),
        ]
        for name, costs in found.items()
    ]
    return numbers.table(head, rows)


def _shown(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def _ratio(values: Sequence[float], plain: Sequence[float]) -> str:
    return f"{statistics.median(value / base for value, base in zip(values, plain, strict=True)):.3f}"


def _latencies(found: Mapping[str, Costs]) -> str:
    plain = found[PLAIN]
    head = ("", "tasks", "to the run: median", "p99", "more", "to the result: median", "p99", "more")
    rows = [
        [name, str(len(costs.to_run)), *_spread(costs.to_run, plain.to_run), *_spread(costs.to_result, plain.to_result)]
        for name, costs in found.items()
    ]
    return numbers.table(head, rows)


def _spread(values: Sequence[float], plain: Sequence[float]) -> list[str]:
    mine, base = Distribution.of(values), Distribution.of(plain)
    return [f"{value * 1000:,.2f}" for value in (mine.median, mine.percentile(99), mine.median - base.median)]
