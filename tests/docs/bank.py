"""What the tasks of the pages work with: calls that take a while, and notes of them."""

from __future__ import annotations

import os
import time
from pathlib import Path

SECONDS = 1.0
PATIENCE = 40.0


def _note(word: object) -> Path:
    return Path(os.environ["HIGHLANDER_ARENA_JOURNALS"], f"fetching-{word}")


def fetch(*what: object) -> None:
    """Take a second."""
    for word in what:
        _note(word).touch()
    time.sleep(SECONDS)


def wait_until_it_fetches(what: object) -> None:
    """Return when a task has begun to fetch that."""
    end = time.monotonic() + PATIENCE
    while not _note(what).exists():
        assert time.monotonic() < end, f"nobody fetches {what}"
        time.sleep(0.01)
