"""A counter in a file that loses updates as soon as two add to it at once; standard library only."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

DIRECTORY = Path(os.environ.get("HIGHLANDER_ARENA_JOURNALS", ".")).parent


def add(counter: str, number: int) -> int:
    """Read, yield, write; note the number beside the counter, in the same breath as the value."""
    path = DIRECTORY / f"{counter}.counter"
    lines = path.read_bytes().count(b"\n") if path.exists() else 0
    time.sleep(random.uniform(0.0, 0.003))
    # One write at the place where the end was: whoever was there meanwhile is overwritten.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(descriptor, f"{number:09d}\n".encode(), lines * 10)
    finally:
        os.close(descriptor)
    return lines + 1
