"""Counters in files that lose updates as soon as two add to them at once; standard library only, and no care."""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

_WIDTH = 10


def add(counter: str, number: int) -> int:
    """Read the value, yield, write the next one, with the number; note in the same breath that this was done."""
    directory = Path(os.environ["HIGHLANDER_ARENA_JOURNALS"]).parent
    path = directory / f"{counter}.counter"
    value = path.stat().st_size // _WIDTH if path.exists() else 0
    time.sleep(random.uniform(0.0, 0.003))
    # At the place where the end was: whoever has written there meanwhile is overwritten.
    _write(path, f"{number:0{_WIDTH - 1}d}\n", value * _WIDTH)
    _write(directory / f"{counter}.done", f"{value} {number}\n", None)
    return value + 1


def _write(path: Path, text: str, offset: int | None) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if offset is None else 0), 0o644)
    try:
        if offset is None:
            os.write(descriptor, text.encode())
        else:
            os.pwrite(descriptor, text.encode(), offset)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Ledger:
    """What became of one counter.

    Attributes:
        value: its final value.
        done: the value that each increment found, and its number, in the order in which they were noted.
        numbers: the number that has made each value.
    """

    value: int
    done: tuple[tuple[int, int], ...]
    numbers: tuple[int, ...]

    @classmethod
    def read(cls, directory: Path, counter: str) -> Ledger:
        """Read it."""
        path = directory / f"{counter}.counter"
        numbers = tuple(int(line) for line in path.read_text().split()) if path.exists() else ()
        noted = directory / f"{counter}.done"
        lines = [line.split() for line in noted.read_text().splitlines()] if noted.exists() else []
        return cls(len(numbers), tuple((int(value), int(number)) for value, number in lines), numbers)

    @property
    def lost(self) -> list[tuple[int, int]]:
        """The increments that were done, and are not in the value: somebody else has written there."""
        seen: set[int] = set()
        lost = []
        for value, number in self.done:
            if value in seen or self.numbers[value] != number:
                lost.append((value, number))
            seen.add(value)
        return lost

    @property
    def cut_short(self) -> int:
        """The increments that were written, and then killed before they were noted."""
        return self.value - len({value for value, _ in self.done})
