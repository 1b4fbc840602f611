"""What a term's lease is really worth, kept beside the node and independently of what it believes."""

from __future__ import annotations

from math import inf

from celery_highlander.election import node as n
from celery_highlander.election import protocol as p


class Leases:
    """One machine's leases, by its own clock: the instant before a confirmed statement was sent, plus the lease."""

    def __init__(self, lease: float) -> None:
        self._lease = lease
        self._ends: dict[str, tuple[int, float]] = {}

    def confirm(self, event: n.NodeEvent, statement: n.NodeEffect | None) -> None:
        """Take in the answer to `statement`."""
        if isinstance(event, n.TermsBegun):
            for name, outcome in event.outcomes.items():
                if isinstance(outcome, p.Begun):
                    self._ends[name] = (outcome.token, outcome.sent_at + self._lease)
        elif isinstance(event, n.HeartbeatAnswered) and isinstance(statement, n.Heartbeat):
            for name, token in statement.terms.items():
                known, end = self._ends[name]
                if known == token:
                    self._ends[name] = (token, max(end, event.sent_at + self._lease))

    def end_of(self, name: str, token: int) -> float:
        """When the lease of a term ends; long ago for a term that is not this machine's last one."""
        known, end = self._ends[name]
        return end if known == token else -inf
