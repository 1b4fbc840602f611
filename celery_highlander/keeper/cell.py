"""The lease cell: eight bytes of shared memory that say until when the work on this node may run.

Only the keeper writes it. Whoever works reads it: a worker, its pool children, a singleton process. It needs no
message, so it also holds where the keeper is frozen, and where the worker is.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from pathlib import Path

_SIZE = mmap.PAGESIZE


def create() -> int:
    """Return the descriptor of a new cell, not inheritable, without a name anywhere."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("highlander-lease")
    else:
        descriptor, path = tempfile.mkstemp(prefix="highlander-")
        Path(path).unlink()
    os.ftruncate(descriptor, _SIZE)
    return descriptor


class LeaseCell:
    """The cell behind a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, _SIZE)
        self._value = ctypes.c_double.from_buffer(self._memory)  # one aligned store: no reader sees half a value

    @property
    def deadline(self) -> float:
        """When work that still runs has to be dead (boot-time clock, seconds); 0 where none may run."""
        return self._value.value

    @deadline.setter
    def deadline(self, value: float) -> None:
        self._value.value = value
