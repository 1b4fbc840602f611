"""Judges from journals who acted when, and whether there was only one; it must not know how that was ensured.

A *spell* is a time in which one owner, that is one node under one token, was seen acting: from one line of a journal
to another with no silence longer than `silence` between them, and from the start of a task to its end. Nothing is
rounded and nothing is excused: two spells overlap if the intervals between their first and their last lines have an
instant in common that is not merely where one ends and the other begins.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.arena import records
from tests.arena.records import Gap, Overlap, Owner, Spell, Takeover, TaskRun, TokenFall

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DEFAULT_SILENCE = 0.05
_MILLION = 1_000_000


@dataclass(slots=True)
class _Stretch:
    """Part of a spell, while it is being put together."""

    first: int
    last: int
    lines: int
    stopped: bool


class Referee:
    """Reads all the journals of a directory once, when it is made.

    Args:
        directory: Where the `*.journal` files are.
        silence: Seconds; beats of one owner further apart than this are two spells.

    Raises:
        JournalError: A line other than the last of a file is malformed.
    """

    def __init__(self, directory: Path | str, *, silence: float = DEFAULT_SILENCE) -> None:
        self._silence = round(silence * 1e9)
        self.directory = Path(directory)
        self.files = records.read_directory(self.directory)
        self._runs = [run for file in self.files for run in file.task_runs()]
        self._spells = self._find_spells()

    @property
    def singletons(self) -> list[str]:
        """The names of all singletons that were seen acting."""
        return sorted(self._spells)

    def spells(self, singleton: str) -> list[Spell]:
        """Who acted, from when to when; in the order of their first lines."""
        return self._spells.get(singleton, [])

    def overlaps(self, singleton: str) -> list[Overlap]:
        """All pairs of spells of different owners that have more than an end in common."""
        return [Overlap(earlier, later) for earlier, later in self._intersecting(singleton)]

    def max_concurrency(self, singleton: str) -> int:
        """The greatest number of owners that acted at one instant."""
        most = min(1, len(self.spells(singleton)))
        beside: dict[int, list[Spell]] = {}
        for earlier, later in self._intersecting(singleton):
            beside.setdefault(id(later), [later]).append(earlier)
        # The members of a group have an instant in common: the one at which the latest of them began.
        return max([most, *map(len, beside.values())])

    def gaps(self, singleton: str) -> list[Gap]:
        """The times with nobody acting, between the first line and the last; pauses of one owner included."""
        found: list[Gap] = []
        latest: Spell | None = None
        for spell in self.spells(singleton):
            if latest is not None and spell.first > latest.last:
                found.append(Gap(latest, spell))
            if latest is None or spell.last > latest.last:
                latest = spell
        return found

    def takeovers(self, singleton: str) -> list[Takeover]:
        """Every change of owner: from the last line of one to the first line of the next; negative if too early."""
        return [
            Takeover(before, after)
            for before, after in itertools.pairwise(self.spells(singleton))
            if before.owner != after.owner
        ]

    def falling_tokens(self, singleton: str) -> list[TokenFall]:
        """Every pair of consecutive owners whose token did not rise; an unknown token is passed over."""
        known = [spell for spell in self.spells(singleton) if spell.owner.token_order is not None]
        return [
            TokenFall(before, after)
            for before, after in itertools.pairwise(known)
            if before.owner != after.owner and not _rises(before.owner, after.owner)
        ]

    def tokens_rise(self, singleton: str) -> bool:
        """Whether each owner's token was greater than that of the owner before."""
        return not self.falling_tokens(singleton)

    def task_runs(self, singleton: str | None = None) -> list[TaskRun]:
        """All runs of tasks, finished or not, in the order of their start."""
        runs = (run for run in self._runs if singleton in {None, run.owner.singleton})
        return sorted(runs, key=lambda run: (run.first, run.last))

    def missing(self, messages_sent: Iterable[str], singleton: str | None = None) -> list[str]:
        """The ids of messages that were sent and whose task never ended."""
        ended = {run.task_id for run in self.task_runs(singleton) if run.finished}
        return sorted(set(messages_sent) - ended)

    def duplicates(self, singleton: str | None = None) -> dict[str, int]:
        """The ids of tasks that ended more than once, with how often."""
        ended = Counter(run.task_id for run in self.task_runs(singleton) if run.finished)
        return {task_id: count for task_id, count in sorted(ended.items()) if count > 1}

    def concurrent_runs(self, singleton: str | None = None) -> list[tuple[TaskRun, TaskRun]]:
        """Pairs of runs of the same task id that were under way at the same time."""
        by_id: dict[str, list[TaskRun]] = {}
        for run in self.task_runs(singleton):
            by_id.setdefault(run.task_id, []).append(run)
        pairs = itertools.chain.from_iterable(itertools.combinations(runs, 2) for runs in by_id.values())
        return [(one, other) for one, other in pairs if one.first < other.last and other.first < one.last]

    def report(self) -> str:
        """What was seen, as text for a reader."""
        if not self._spells:
            return f"no line in any journal of {self.directory}"
        return "\n".join(line for singleton in self.singletons for line in self._describe(singleton))

    def verdict(self, *singletons: str) -> None:
        """Fail unless there was only one of each of these singletons, or of all that were seen.

        Raises:
            AssertionError: Two owners acted at once, or a token did not rise, or one was never seen acting at all.
        """
        faults: list[str] = []
        for singleton in singletons or self.singletons or [""]:
            if not self.spells(singleton):
                seen = ", ".join(self.singletons) or "nothing"
                faults.append(f"{singleton or 'no singleton'} was seen acting in {self.directory} (seen: {seen})")
            faults += [f"{singleton}: {overlap}" for overlap in self.overlaps(singleton)]
            faults += [f"{singleton}: {fall}" for fall in self.falling_tokens(singleton)]
        if faults:
            raise AssertionError("there can be only one, but:\n  " + "\n  ".join(faults) + f"\n{self.report()}")

    def _intersecting(self, singleton: str) -> Iterator[tuple[Spell, Spell]]:
        open_spells: list[Spell] = []
        for spell in self.spells(singleton):
            open_spells = [other for other in open_spells if other.last > spell.first]
            for other in open_spells:
                # A spell of one line, hence without duration, counts if it lies strictly inside another one.
                if other.first < spell.last and other.owner != spell.owner:
                    yield other, spell
            open_spells.append(spell)

    def _find_spells(self) -> dict[str, list[Spell]]:
        stretches: dict[Owner, list[_Stretch]] = {}
        for file in self.files:
            for line in file.lines:
                stretch = _Stretch(line.instant, line.instant, 1, line.what == "stop")
                stretches.setdefault(line.owner, []).append(stretch)
        for run in self._runs:
            stretches[run.owner].append(_Stretch(run.first, run.last, 0, stopped=False))
        spells: dict[str, list[Spell]] = {}
        for owner, parts in stretches.items():
            for joined in self._join(parts):
                spells.setdefault(owner.singleton, []).append(Spell(owner, joined.first, joined.last, joined.lines))
        for found in spells.values():
            found.sort(key=lambda spell: (spell.first, spell.last))
        return spells

    def _join(self, parts: list[_Stretch]) -> list[_Stretch]:
        joined: list[_Stretch] = []
        # Of those that begin together the longest comes first, so that a stop at its very start does not end it.
        for part in sorted(parts, key=lambda part: (part.first, -part.last)):
            current = joined[-1] if joined else None
            reach = 0 if current is None or current.stopped else self._silence
            if current is None or part.first - current.last > reach:
                joined.append(part)
                continue
            current.lines += part.lines
            if part.last >= current.last:
                current.last, current.stopped = part.last, part.stopped
        return joined

    def _describe(self, singleton: str) -> Iterator[str]:
        spells = self.spells(singleton)
        start = spells[0].first
        owners = {spell.owner for spell in spells}
        yield (
            f"{singleton}: {len(spells)} spells of {len(owners)} owners in {(spells[-1].last - start) / 1e9:.3f} s,"
            f" at most {self.max_concurrency(singleton)} at once"
        )
        for spell in spells:
            first, last = (spell.first - start) / _MILLION, (spell.last - start) / _MILLION
            yield f"  {first:12.3f} .. {last:12.3f} ms  {spell.owner}  ({spell.lines} lines)"
        for overlap in self.overlaps(singleton):
            yield f"  OVERLAP {overlap}"
        for fall in self.falling_tokens(singleton):
            yield f"  TOKEN {fall}"
        takeovers = sorted(takeover.duration for takeover in self.takeovers(singleton))
        if takeovers:
            yield f"  takeovers: {', '.join(f'{duration / _MILLION:.3f}' for duration in takeovers)} ms"
        gaps = [gap.duration for gap in self.gaps(singleton)]
        if gaps:
            longest, total = max(gaps) / _MILLION, sum(gaps) / _MILLION
            yield f"  nobody: {len(gaps)} times, at most {longest:.3f} ms, {total:.3f} ms in all"
        runs = self.task_runs(singleton)
        if runs:
            finished = sum(run.finished for run in runs)
            yield (
                f"  tasks: {len(runs)} runs, {finished} finished, {len(self.duplicates(singleton))} ids more than once,"
                f" {len(self.concurrent_runs(singleton))} pairs at the same time"
            )


def _rises(before: Owner, after: Owner) -> bool:
    assert before.token_order is not None
    assert after.token_order is not None
    return after.token_order > before.token_order
