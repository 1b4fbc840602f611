"""Reads the journals as they grow: the newest term, since when it acts, which payments are entered; judges nothing."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.arena.journal import SUFFIX

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(slots=True)
class Seen:
    """What the journals say of one singleton: newest token, when it was seen first, lines, and ended tasks."""

    token: int = 0
    first: int = 0
    lines: int = 0
    ended: set[str] = field(default_factory=set)


class Tally:
    """A running count over all the journals of a directory; may be asked from several threads."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._offsets: dict[Path, int] = {}
        self._seen: dict[str, Seen] = {}
        self._lock = threading.Lock()

    def of(self, singleton: str) -> Seen:
        """Return what was seen up to now."""
        with self._lock:
            for path in self._directory.glob(f"*{SUFFIX}"):
                self._read(path)
            return self._seen.setdefault(singleton, Seen())

    def _read(self, path: Path) -> None:
        offset = self._offsets.get(path, 0)
        with path.open("rb") as file:
            file.seek(offset)
            complete, newline, _ = file.read().rpartition(b"\n")
        if not newline:
            return
        self._offsets[path] = offset + len(complete) + 1
        for line in complete.decode().split("\n"):
            instant, singleton, _, token, what = line.split(" ")
            seen = self._seen.setdefault(singleton, Seen())
            seen.lines += 1
            if int(token) > seen.token:
                seen.token, seen.first = int(token), int(instant)
            if what.startswith("task-end:"):
                seen.ended.add(what.removeprefix("task-end:"))
