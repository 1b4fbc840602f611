"""The table of executions: each run of a tick, one line, in a file for each process; and the judge of it."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from tests.arena.journal import now_ns

if TYPE_CHECKING:
    from pathlib import Path

_UNKNOWN = datetime.min.replace(tzinfo=timezone.utc)  # where there is no ledger


@dataclass(frozen=True)
class Execution:
    """One run: of which tick, when (boot-time clock, ns), under which task id, from which copy of the message."""

    entry: str
    due_at: datetime
    at: int
    task_id: str
    copy: str


def note(directory: Path, entry: str, due_at: str, task_id: str, copy: str) -> None:
    """Write a run down, in one write."""
    line = f"{entry} {due_at or '-'} {now_ns()} {task_id} {copy or '-'}\n".encode()
    descriptor = os.open(directory / f"executions.{os.getpid()}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def read(directory: Path) -> list[Execution]:
    """Return all runs, the earliest one first."""
    found = []
    for path in directory.glob("executions.*"):
        for line in path.read_text().splitlines():
            entry, due_at, at, task_id, copy = line.split(" ")
            due = _UNKNOWN if due_at == "-" else datetime.fromisoformat(due_at)
            found.append(Execution(entry, due, int(at), task_id, copy))
    return sorted(found, key=lambda run: run.at)


def doubled(runs: list[Execution]) -> dict[tuple[str, datetime], int]:
    """Return the ticks that ran more than once."""
    counts = Counter((run.entry, run.due_at) for run in runs)
    return {tick: count for tick, count in counts.items() if count > 1}


def from_two_copies(runs: list[Execution]) -> dict[tuple[str, datetime], set[str]]:
    """Return the ticks that ran from more than one copy of their message: one copy may be delivered again."""
    copies: dict[tuple[str, datetime], set[str]] = {}
    for run in runs:
        copies.setdefault((run.entry, run.due_at), set()).add(run.copy)
    return {tick: found for tick, found in copies.items() if len(found) > 1}


def missing(runs: list[Execution], intervals: dict[str, float]) -> dict[str, list[datetime]]:
    """Return the ticks of interval entries that did not run, between the first and the last one that did."""
    holes = {}
    for entry, seconds in intervals.items():
        due = sorted({run.due_at for run in runs if run.entry == entry})
        if not due:
            holes[entry] = [datetime.max.replace(tzinfo=timezone.utc)]
            continue
        step = timedelta(seconds=seconds)
        expected = [due[0] + n * step for n in range(round((due[-1] - due[0]) / step) + 1)]
        gone = sorted(set(expected) - set(due))
        if gone or set(due) - set(expected):
            holes[entry] = gone + sorted(set(due) - set(expected))
    return holes
