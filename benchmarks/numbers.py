"""Distributions, and what the machine itself adds to every measurement."""

from __future__ import annotations

import os
import platform
import select
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from celery_highlander.clock import boot_time

if TYPE_CHECKING:
    from collections.abc import Sequence

HEAD = ("runs", "min", "median", "mean", "p90", "max")


@dataclass(frozen=True, slots=True)
class Distribution:
    """Durations in seconds."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution:
        """Make one of at least two values."""
        return cls(tuple(sorted(values)))

    @property
    def median(self) -> float:
        """Half of them are below."""
        return statistics.median(self.values)

    @property
    def maximum(self) -> float:
        """The longest."""
        return self.values[-1]

    def percentile(self, percent: int) -> float:
        """So many percent of them are below."""
        return statistics.quantiles(self.values, n=100, method="inclusive")[percent - 1]

    def cells(self) -> list[str]:
        """Return the cells for `HEAD`, in milliseconds."""
        p90 = statistics.quantiles(self.values, n=10, method="inclusive")[-1]
        shown = (self.values[0], self.median, statistics.fmean(self.values), p90, self.maximum)
        return [str(len(self.values)), *(f"{value * 1000:,.1f}" for value in shown)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        return "| " + " | ".join([first, *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([line(head), rule, *map(line, rows)])


def machine() -> str:
    """Return what this machine is, without its name."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, {platform.system()} {platform.release().split('-')[0]}"


def versions() -> str:
    """Return the versions of what is measured."""
    names = ("celery-highlander", "celery", "kombu", "SQLAlchemy", "psycopg2-binary")
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in names)])


def load() -> str:
    """Return the load average of the last minute."""
    return f"{os.getloadavg()[0]:.2f}"


def oversleeping(rounds: int = 200) -> Distribution:
    """How much later than asked for this process wakes up from 5 ms of sleep: the scheduler's noise."""
    found = []
    for _ in range(rounds):
        start = boot_time()
        time.sleep(0.005)
        found.append(boot_time() - start - 0.005)
    return Distribution.of(found)


def dying(rounds: int = 20) -> Distribution:
    """How long an idle Python process with Celery loaded takes to be dead after SIGKILL: the floor of every crash."""
    found = []
    for _ in range(rounds):
        code = "import celery.app, celery.worker, sys; print('up', flush=True); sys.stdin.read()"
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            descriptor = os.pidfd_open(process.pid)
            start = boot_time()
            process.send_signal(signal.SIGKILL)
            select.select([descriptor], [], [])
            found.append(boot_time() - start)
            os.close(descriptor)
    return Distribution.of(found)
