"""An opt-in trace of the elections, for measurements: `HIGHLANDER_TRACE=path` has each keeper append to that file.

One line an event, `<boot time in seconds> <event> <singleton> <token>`, in one write: several keepers may share a file.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from celery_highlander.clock import boot_time

VARIABLE = "HIGHLANDER_TRACE"

Trace = Callable[[str, str, int], None]


def _nothing(event: str, name: str, token: int) -> None:
    """Nobody measures."""


def open_trace() -> Trace:
    """Return what notes `(event, singleton, token)`; it does nothing where the variable is not set."""
    path = os.environ.get(VARIABLE)
    if not path:
        return _nothing
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def note(event: str, name: str, token: int) -> None:
        os.write(descriptor, f"{boot_time():.6f} {event} {name} {token}\n".encode())

    return note
