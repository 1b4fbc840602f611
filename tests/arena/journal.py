"""The journal that a singleton's own work writes, line by line; standard library only, and no judgement."""

from __future__ import annotations

import contextlib
import os
import time
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from typing_extensions import Self

UNKNOWN = "-"
SUFFIX = ".journal"
# Stops while a machine sleeps on systems without CLOCK_BOOTTIME; they are not where we judge.
_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now_ns() -> int:
    """The instant that lines carry: the same clock for all processes of one machine."""
    return time.clock_gettime_ns(_CLOCK)


class Journal:
    """An append-only file with one line per beat: `<boottime_ns> <singleton> <node> <token> <what>`.

    `what` is `start`, `beat`, `stop`, `task-start:<id>`, `task-end:<id>`, or `task-abort:<id>` for a run that was
    given up. A line is one write(2) in O_APPEND, in the kernel before the work goes on: a `kill -9` loses none.

    One process, one file: after a fork the child opens its own.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    @classmethod
    def open(cls, directory: Path | str, singleton: str) -> Self:
        """A new file of this process: `<singleton>.<pid>.<n>.journal`, the singleton's name percent-encoded."""
        stem = urllib.parse.quote(singleton, safe="")
        number = 0
        while True:
            path = Path(directory) / f"{stem}.{os.getpid()}.{number}{SUFFIX}"
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
            except FileExistsError:
                number += 1
                continue
            return cls(path)

    def write(self, singleton: str, node: str | int, token: object, what: str) -> int:
        """Append one line and return its instant.

        Args:
            singleton: The singleton's name.
            node: Who acts: the node, or the pid for work that has to be one process.
            token: The fencing token under which it acts, or `UNKNOWN`.
            what: What happens; see the class.
        """
        fields = (singleton, str(node), str(token), what)
        for field in fields:
            if not field or field.split() != [field]:
                raise ValueError(f"a journal's field must be one word, not {field!r}")
        instant = now_ns()
        line = f"{instant} {' '.join(fields)}\n".encode()
        written = os.write(self._descriptor, line)
        if written != len(line):
            raise OSError(f"{self.path}: {written} of {len(line)} bytes written")
        return instant

    @contextlib.contextmanager
    def task(self, singleton: str, node: str | int, token: object, task_id: str) -> Iterator[None]:
        """Note the start and the end of one run of a task; `task-abort` if it raises."""
        self.write(singleton, node, token, f"task-start:{task_id}")
        try:
            yield
        except BaseException:
            self.write(singleton, node, token, f"task-abort:{task_id}")
            raise
        self.write(singleton, node, token, f"task-end:{task_id}")

    def close(self) -> None:
        """Close the file; may be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
