"""The boot-time clock: seconds since the machine started, also while it slept; the same for all its processes."""

from __future__ import annotations

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # macOS: its CLOCK_MONOTONIC does not stop in sleep


def boot_time() -> float:
    """Return the boot-time clock in seconds."""
    return time.clock_gettime(_CLOCK)


def poll_timeout(seconds: float) -> float:
    """Return milliseconds for `poll`: not 0, which would not wait, and not so long that it does not fit its type."""
    return max(1.0, min(seconds, 60.0) * 1000)
