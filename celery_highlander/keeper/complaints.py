"""What was said of the database: a trouble is told once, not at every retry; it knows not what the trouble is."""

from __future__ import annotations

import re

_NUMBERS = re.compile(r"\d+")


class Complaints:
    """What was told since the lock session was last steady."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._untold = 0

    def __bool__(self) -> bool:
        """Whether there is a trouble."""
        return bool(self._told)

    def is_new(self, trouble: str) -> bool:
        """Note a trouble; return whether it has to be told. Numbers do not make it a new one: ports, pids, files."""
        known = len(self._told)
        self._told.add(_NUMBERS.sub("#", trouble))
        is_new = len(self._told) > known
        self._untold += not is_new
        return is_new

    def forget(self) -> int:
        """The session is steady: the same trouble would be another one. Return how often it was not told."""
        untold, self._untold = self._untold, 0
        self._told.clear()
        return untold
