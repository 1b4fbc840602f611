"""When to try for a session again: soon, but not all nodes at once, nor again and again; it knows no contest."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

RECONNECT_DELAYS = (0.05, 0.1, 0.2, 0.3, 0.3, 0.4, 0.5, 1.0, 2.0)
"""Seconds before the first, second, ... try to connect again, each times 1 to 1.5; the last one repeats. A server that
is restarted is back within a second or two; until then the pauses are short. On top of that comes `SPREAD`."""

SPREAD = 0.01
"""Seconds for each node of the cluster over which all of them spread a try to connect again: together they make about a
hundred connections a second, however many they are. Who leads does not wait for that: the others wait for its mark."""

STEADY_SESSION = 5.0
"""Seconds for which a session has to live to count as a success: one that opens and breaks at once (on a full disk the
term cannot be recorded, for instance) makes the next pause longer, as one does that does not open at all."""


class Reconnects:
    """The pauses between a node's sessions; `due_at` is when the next one is to be opened."""

    def __init__(self, random: Callable[[], float]) -> None:
        self.due_at = -inf
        self._random = random
        self._opened_at = inf
        self._failures = 0
        self._crowd = 0  # nodes that lose their sessions together with ours, as far as we know

    def opened(self, now: float) -> None:
        """The session is open."""
        self._opened_at = now

    def is_steady(self, now: float) -> bool:
        """Whether the session has lived long enough to count as a success."""
        return now - self._opened_at >= STEADY_SESSION

    def lost(self, now: float, crowd: int, *, hurry: bool) -> None:
        """The session broke, or could not be opened.

        Args:
            now: the present.
            crowd: how many nodes there were; 0 where that was not known.
            hurry: others wait for what this node has to say.
        """
        if self.is_steady(now):
            self._failures = 0
        self._opened_at = inf
        self._crowd = crowd or self._crowd
        delay = RECONNECT_DELAYS[min(self._failures, len(RECONNECT_DELAYS) - 1)]
        self._failures += 1
        spread = 0.0 if hurry else self._crowd * SPREAD
        self.due_at = now + delay * (1 + self._random() / 2) + spread * self._random()
