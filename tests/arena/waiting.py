"""Waits for events with a generous limit; it must not know what it waits for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.05


class WaitedInVainError(AssertionError):
    """The event did not come within the limit."""


def wait_until(predicate: Callable[[], T | None], timeout: float, what: str) -> T:
    """Call `predicate` until it returns something true, and return that.

    Args:
        predicate: Asked at once and then again after ever longer pauses (1 to 50 ms).
        timeout: The limit in seconds; generous, since it is only reached in a failing test.
        what: The event, for the message: "waited 10 s in vain for <what>".

    Raises:
        WaitedInVainError: `timeout` has passed; the predicate was asked once more after that.
    """
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    while True:
        is_last = time.monotonic() >= deadline
        answer = predicate()
        if answer:
            return answer
        if is_last:
            raise WaitedInVainError(f"waited {timeout:g} s in vain for {what} (last answer: {answer!r})")
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)
