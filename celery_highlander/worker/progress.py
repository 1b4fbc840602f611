"""Whether the worker's main loop goes round: one that hangs holds messages, and does nothing with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class LoopWatch:
    """Asks the main loop again and again for a sign of life. Called on the link's thread.

    Args:
        ask: has a function run by the main loop.
        is_expected: whether the loop is expected to go round at the moment.
        interval: seconds from one question to the next one.
        timeout: seconds without an answer after which the loop counts as hung.
    """

    def __init__(
        self,
        ask: Callable[[Callable[[], object]], None],
        is_expected: Callable[[], bool],
        interval: float,
        timeout: float,
    ) -> None:
        self._ask = ask
        self._is_expected = is_expected
        self._interval = interval
        self.timeout = timeout
        self._asked_at: float | None = None
        self._answered = True

    def is_hung(self, now: float) -> bool:
        """Return whether the loop hangs; ask it anew if it is time to."""
        if not self._is_expected():
            self._asked_at, self._answered = None, True
            return False
        if self._answered and (self._asked_at is None or now - self._asked_at >= self._interval):
            self._asked_at, self._answered = now, False
            self._ask(self._answer)
        return not self._answered and self._asked_at is not None and now - self._asked_at > self.timeout

    def _answer(self) -> None:
        self._answered = True
