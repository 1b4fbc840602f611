"""What a journal says, as values: lines, runs, spells; it reads files and judges nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.arena.journal import SUFFIX, UNKNOWN

if TYPE_CHECKING:
    from pathlib import Path

_MILLION = 1_000_000
_FIELDS = 5
_TOKEN = re.compile(rf"{UNKNOWN}|\d+([:./-]\d+)*")
_KINDS = re.compile(r"start|beat|stop|task-(start|end|abort):\S+")


class JournalError(ValueError):
    """A journal has a line that nobody could have written."""


@dataclass(frozen=True, slots=True)
class Owner:
    """One node acting for one singleton under one token."""

    singleton: str
    node: str
    token: str

    @property
    def token_order(self) -> tuple[int, ...] | None:
        """The token as numbers, led by the timeline if it has one (`2:17`); None if it is unknown."""
        if self.token == UNKNOWN:
            return None
        return tuple(int(part) for part in re.split(r"[:./-]", self.token))

    def __str__(self) -> str:
        return f"{self.node} token {self.token}"


@dataclass(frozen=True, slots=True)
class Line:
    """One line; `instant` is in nanoseconds of the boot-time clock, as are all instants here."""

    instant: int
    owner: Owner
    what: str


@dataclass(frozen=True, slots=True)
class TaskRun:
    """One run of a task: up to its end, or to the last line of its process if it has none."""

    task_id: str
    owner: Owner
    first: int
    last: int
    finished: bool
    file: str


@dataclass(frozen=True, slots=True)
class Spell:
    """An unbroken time in which one owner acted."""

    owner: Owner
    first: int
    last: int
    lines: int

    @property
    def duration(self) -> int:
        """In nanoseconds; 0 for a single line."""
        return self.last - self.first


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two owners at once."""

    earlier: Spell
    later: Spell

    @property
    def duration(self) -> int:
        """In nanoseconds; 0 if one of the two is a single line, which is an overlap all the same."""
        return min(self.earlier.last, self.later.last) - self.later.first

    def __str__(self) -> str:
        return (
            f"{self.earlier.owner} and {self.later.owner} both acted for {self.duration / _MILLION:.6f} ms"
            f" from {self.later.first} on"
        )


@dataclass(frozen=True, slots=True)
class Gap:
    """Nobody acted between two spells."""

    before: Spell
    after: Spell

    @property
    def duration(self) -> int:
        """In nanoseconds."""
        return self.after.first - self.before.last


@dataclass(frozen=True, slots=True)
class Takeover:
    """One owner's last line and the next owner's first."""

    before: Spell
    after: Spell

    @property
    def duration(self) -> int:
        """In nanoseconds; negative if the next one began before the first had ended."""
        return self.after.first - self.before.last


@dataclass(frozen=True, slots=True)
class TokenFall:
    """A later owner whose token is not greater."""

    before: Spell
    after: Spell

    def __str__(self) -> str:
        return f"{self.after.owner} began after {self.before.owner}, but its token is not greater"


@dataclass(frozen=True, slots=True)
class JournalFile:
    """One process' journal; `truncated` says that its last line was cut short and left out."""

    name: str
    lines: tuple[Line, ...]
    truncated: bool

    def task_runs(self) -> list[TaskRun]:
        """The runs that this process started; an end belongs to the oldest run of that id that is still open."""
        under_way: dict[tuple[str, str, str], list[tuple[Owner, int]]] = {}
        runs: list[TaskRun] = []
        for line in self.lines:
            what, _, task_id = line.what.partition(":")
            if what == "task-start":
                key = (line.owner.singleton, line.owner.node, task_id)
                under_way.setdefault(key, []).append((line.owner, line.instant))
            elif what in {"task-end", "task-abort"}:
                starts = under_way.get((line.owner.singleton, line.owner.node, task_id))
                if not starts:
                    raise JournalError(f"{self.name}: {line.what} at {line.instant} without a start by {line.owner}")
                owner, start = starts.pop(0)
                runs.append(TaskRun(task_id, owner, start, line.instant, what == "task-end", self.name))
        for (_, _, task_id), starts in under_way.items():
            last = self.lines[-1].instant
            runs += [TaskRun(task_id, owner, start, last, finished=False, file=self.name) for owner, start in starts]
        return runs


def read_directory(directory: Path) -> list[JournalFile]:
    """All the journals of a directory.

    Raises:
        JournalError: A complete line is malformed.
    """
    return [read_file(path) for path in sorted(directory.glob(f"*{SUFFIX}"))]


def read_file(path: Path) -> JournalFile:
    """One journal; a last line without its newline is one that a killed process could not finish."""
    complete, newline, rest = path.read_bytes().rpartition(b"\n")
    lines: list[Line] = []
    # Split at newlines only: str.splitlines knows more separators than a writer does.
    for number, text in enumerate(complete.split(b"\n") if newline else [], 1):
        lines.append(_parse(text.decode(errors="replace"), f"{path.name}:{number}"))
    return JournalFile(path.name, tuple(sorted(lines, key=lambda line: line.instant)), bool(rest))


def _parse(text: str, where: str) -> Line:
    fields = text.split(" ")
    if not (
        len(fields) == _FIELDS
        and fields[0].isdigit()
        and all(fields[1:3])
        and _TOKEN.fullmatch(fields[3])
        and _KINDS.fullmatch(fields[4])
    ):
        raise JournalError(f"{where}: not a line of a journal: {text!r}")
    return Line(int(fields[0]), Owner(fields[1], fields[2], fields[3]), fields[4])
