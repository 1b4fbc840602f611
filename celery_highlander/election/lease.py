"""Lease and takeover arithmetic, in seconds of one machine's boot-time clock; knows nothing of phases."""

from __future__ import annotations

from dataclasses import dataclass

CLOCK_RATE_TOLERANCE = 0.002
"""How much faster one node's clock may run than another's: NTP slews by at most 500 ppm (RFC 5905), crystals are
worse than 200 ppm only when broken; twice the sum is allowed. A successor waits that much longer."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The durations of an election, in seconds.

    Attributes:
        lease: how long a leader may act on its last confirmed heartbeat.
        heartbeat_interval: from one heartbeat's sending to the next one's.
        heartbeat_timeout: how long a heartbeat may be unanswered before the session counts as lost.
        drain_timeout: how long work that was told to stop may take to finish.
        kill_margin: how long before the lease ends the killing begins.
        poll_interval: from one try for the lock to the next one, before jitter.
    """

    lease: float = 6.0
    heartbeat_interval: float = 1.0
    heartbeat_timeout: float = 2.0
    drain_timeout: float = 2.0
    kill_margin: float = 0.5
    poll_interval: float = 0.5

    @property
    def needed(self) -> float:
        """The shortest lease in which a silent database, a full drain and the killing fit."""
        return self.heartbeat_interval + self.heartbeat_timeout + self.drain_timeout + self.kill_margin

    def kill_deadline(self, lease_deadline: float) -> float:
        """When work that still runs has to be killed, so that it is dead before the lease ends."""
        return lease_deadline - self.kill_margin

    def act_deadline(self, lease_deadline: float) -> float:
        """When a leader whose lease was not extended has to begin to stop, so that a full drain still fits."""
        return lease_deadline - self.kill_margin - self.drain_timeout


def wait_for(duration: float) -> float:
    """How long this node has to wait, by its own clock, until `duration` has passed by anybody's."""
    return duration * (1.0 + CLOCK_RATE_TOLERANCE)
