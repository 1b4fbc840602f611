"""`python -m benchmarks.task_sender`: sends the measured task in a process of its own, one for each side.

It reads orders, one JSON list a line, and answers each with a line of JSON:

- `["send", first, count]`: call `delay()` so often, and say how many seconds that took;
- `["collect"]`: wait for the results of what was sent, and say when the first run and the last one began;
- `["one", number]`: call `delay()`, wait for the result, and say how long it took to the run, and from there to here.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from benchmarks.task_shop import work
from celery_highlander.clock import boot_time

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT = 300.0
_sent: list[Any] = []


def _send(first: int, count: int) -> float:
    begun = boot_time()
    _sent.extend([work.delay(number) for number in range(first, first + count)])
    return boot_time() - begun


def _collect() -> tuple[float, float]:
    starts = [result.get(timeout=TIMEOUT) for result in _sent]
    _sent.clear()
    return min(starts), max(starts)


def _one(number: int) -> tuple[float, float]:
    sent_at = boot_time()
    begun = work.delay(number).get(timeout=TIMEOUT)
    return begun - sent_at, boot_time() - begun


def main() -> None:
    """Answer until the input ends."""
    orders: dict[str, Callable[..., Any]] = {"send": _send, "collect": _collect, "one": _one}
    for line in sys.stdin:
        order, *arguments = json.loads(line)
        print(json.dumps(orders[order](*arguments)), flush=True)


if __name__ == "__main__":
    main()
