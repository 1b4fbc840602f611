"""What a beat counts for the metrics of its node: told to the worker through the keeper, or to its own link."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_KEPT = 1000  # values between two deliveries


class Counts:
    """Counts until they are delivered; not safe across threads."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._values: dict[str, list[float]] = defaultdict(list)

    def count(self, name: str, amount: int = 1) -> None:
        """Add to a counter."""
        self._counts[name] += amount

    def observe(self, name: str, value: float) -> None:
        """Put a value into a histogram."""
        if len(self._values[name]) < _KEPT:
            self._values[name].append(value)

    def deliver(self) -> None:
        """Tell whoever listens in this process, and begin anew."""
        if self._counts and _sink is not None:
            _sink(dict(self._counts), dict(self._values))
        self._counts.clear()
        self._values.clear()


_sink: Callable[[Mapping[str, float], Mapping[str, list[float]]], object] | None = None


def deliver_to(sink: Callable[[Mapping[str, float], Mapping[str, list[float]]], object] | None) -> None:
    """Have all counts of this process delivered to `sink`."""
    global _sink  # noqa: PLW0603  # one for each process
    _sink = sink
