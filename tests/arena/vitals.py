"""What processes and a database use over time, and whether it stays flat; it knows nothing of elections."""

from __future__ import annotations

import contextlib
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from tests.arena.journal import now_ns

_QUARTERS = 4


def of_process(pid: int) -> dict[str, float]:
    """Resident memory in kB, open descriptors and threads of a process; nothing if it is gone."""
    with contextlib.suppress(OSError):
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return {
            "memory": float(status["VmRSS"].split()[0]),
            "descriptors": float(len(list(Path(f"/proc/{pid}/fd").iterdir()))),
            "threads": float(status["Threads"]),
        }
    return {}


@dataclass
class Series:
    """Values over time."""

    values: list[tuple[int, float]] = field(default_factory=list)

    def quarter(self, number: int, began_at: int, ended_at: int) -> list[float]:
        """The values of one quarter, 1 to 4, of the time from `began_at` to `ended_at`."""
        length = (ended_at - began_at) / _QUARTERS
        return [value for at, value in self.values if number - 1 <= (at - began_at) / length < number]


class Vitals:
    """Named series, filled by `note`; `growth` compares the second quarter with the last one."""

    def __init__(self) -> None:
        self.began_at = now_ns()
        self.series: dict[tuple[str, str], Series] = {}

    def note(self, of: str, values: dict[str, float]) -> None:
        """Add the present values of something."""
        for what, value in values.items():
            self.series.setdefault((of, what), Series()).values.append((now_ns(), value))

    def growth(self) -> dict[tuple[str, str], tuple[float, float]]:
        """The medians of the second quarter and of the last one, for each series."""
        ended_at = now_ns()
        found = {}
        for name, series in self.series.items():
            second, last = (series.quarter(number, self.began_at, ended_at) for number in (2, 4))
            if second and last:
                found[name] = statistics.median(second), statistics.median(last)
        return found
