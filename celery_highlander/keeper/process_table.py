"""The processes of this machine, as /proc shows them, or none; knows nothing of what they are to us."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

TICK = 1.0 / os.sysconf("SC_CLK_TCK")
"""Seconds: the unit of `Process.started`."""

NOT_THERE = (FileNotFoundError, ProcessLookupError, PermissionError)
"""What says that there is no such process, or none of ours. Any other error says nothing, least of all that."""

_DEAD = frozenset("ZX")
_AT_REST = frozenset("TtZXD")  # D: it cannot fork now, and stops before it could


class Process(NamedTuple):
    """One living process."""

    parent: int
    state: str
    started: int
    """Ticks of the boot-time clock."""


def _read(pid: int) -> tuple[Process, bool] | None:
    """The process, and whether it is alive; None where there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123  # hundreds of these in a row: Path is slow
            fields = file.read().rpartition(b")")[2].split()
    except NOT_THERE:
        return None
    state = fields[0].decode()
    # The first thread may have ended while others go on: then it looks like a zombie, with more than one thread.
    alive = state not in _DEAD or int(fields[17]) > 1
    return Process(int(fields[1]), state, int(fields[19])), alive


def snapshot() -> dict[int, Process]:
    """Return all living processes by pid; one after the other, so not all at one instant.

    Raises:
        OSError: they cannot be read: there are too many open files, or too little memory.
    """
    found = {}
    with contextlib.suppress(FileNotFoundError):  # another system has no /proc
        for name in os.listdir("/proc"):  # noqa: PTH208  # as above
            if name.isdigit() and (entry := _read(int(name))) is not None and entry[1]:
                found[int(name)] = entry[0]
    return found


def below(pid: int, table: dict[int, Process] | None = None) -> list[int]:
    """Return the pids of all living descendants of `pid`, parents first."""
    children: dict[int, list[int]] = {}
    for child, process in (snapshot() if table is None else table).items():
        children.setdefault(process.parent, []).append(child)
    found, queue = [], [pid]
    while queue:
        ours = children.get(queue.pop(0), [])
        found += ours
        queue += ours
    return found


def ancestors(pid: int) -> list[int]:
    """Return the pids of the ancestors of `pid`, its parent first."""
    found: list[int] = []
    entry = _read(pid)
    while entry is not None and entry[0].parent > 0 and entry[0].parent not in found:
        found.append(entry[0].parent)
        entry = _read(entry[0].parent)
    return found


def started_at(pid: int) -> int:
    """Return when the process was started, in ticks of the boot-time clock; 0 where that is unknown."""
    entry = _read(pid)
    return 0 if entry is None else entry[0].started


def dead_children() -> list[tuple[int, str]]:
    """Return pid and short name of the children of this process that are dead and not reaped."""
    found = []
    with contextlib.suppress(OSError):
        for name in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208  # as above
            entry = _read(int(name))
            if entry is not None and entry[0].parent == os.getpid() and not entry[1]:
                with contextlib.suppress(OSError):
                    found.append((int(name), Path(f"/proc/{name}/comm").read_text().strip()))
    return found


def is_at_rest(pid: int) -> bool:
    """Whether the process is stopped, dead or gone, so that it does nothing any more."""
    entry = _read(pid)
    return entry is None or entry[0].state in _AT_REST
