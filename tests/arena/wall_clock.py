"""A wall clock that a test may step, for the processes that are started with it; their other clocks go on."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from tests.arena import processes

if TYPE_CHECKING:
    from collections.abc import Mapping


def _library() -> Path | None:
    """The library of the package `libfaketime`, found without an import: that would set up the importing process."""
    spec = importlib.util.find_spec("libfaketime")
    if spec is not None and spec.origin is not None:
        found = Path(spec.origin).parent / "vendor/libfaketime/src/libfaketime.so.1"
        if found.exists():
            return found
    return None


def available() -> str | None:
    """Why no clock can be stepped here, or None."""
    return None if _library() else "the package libfaketime is not installed, or has no library for this system"


class WallClock:
    """One wall clock, right at first."""

    def __init__(self) -> None:
        self._path = processes.make_directory("clock") / "offset"  # where a server's user may read, too
        self.step(0)
        processes.at_end(_sweep)

    def step(self, seconds: int) -> None:
        """Have it be wrong by so many seconds from now on."""
        new = self._path.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.rename(self._path)  # in one step: a reader never sees half of it

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process is started with to go by this clock; its children do so, too."""
        return {
            "LD_PRELOAD": str(_library()),
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


def _sweep() -> None:
    """Remove the shared memory that killed processes left behind."""
    for entry in Path("/dev/shm").glob("*faketime_s*_[0-9]*"):  # where the C library puts it
        if not processes.is_alive(int(entry.name.rpartition("_")[2])):
            entry.unlink(missing_ok=True)
