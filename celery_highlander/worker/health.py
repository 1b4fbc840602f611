"""Whether this node's worker is well: what a liveness probe has to know, and nothing that a restart would not mend.

A standby is well; so is a node whose database is away, if it leads nothing any more: others are no better off, and a
restart would not help.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from celery_highlander.clock import boot_time

if TYPE_CHECKING:
    from celery_highlander.worker.link import KeeperLink

LINK_TIMEOUT = 5.0
"""Seconds without a turn of the link's thread after which it counts as hung."""


@dataclass(frozen=True, slots=True)
class Health:
    """The answer.

    Attributes:
        ok: whether all is well.
        problems: what is not, in sentences.
        connected: whether the lock session is open; a node without it leads nothing, and is well all the same.
        leads: what it leads.
    """

    ok: bool
    problems: list[str] = field(default_factory=list)
    connected: bool = False
    leads: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def health_of(link: KeeperLink) -> Health:
    """Examine a link; safe on any thread."""
    now = boot_time()
    vitals = link.vitals
    problems = []
    if now - vitals.turned_at > LINK_TIMEOUT:
        problems.append(f"the plugin's own thread has not moved for {now - vitals.turned_at:.1f} s.")
    if now - vitals.heard_at > vitals.keeper_timeout:
        problems.append(f"the keeper has been silent for {now - vitals.heard_at:.1f} s.")
    # With no lease at all, what was led has ended, and only the last word on it is under way.
    if vitals.leads and vitals.renewed_at is not None and now - vitals.renewed_at > vitals.renewed_every:
        problems.append(
            f"the lease is overdue: renewed {now - vitals.renewed_at:.1f} s ago, and {', '.join(vitals.leads)} has "
            "not stopped yet."
        )
    if vitals.hung_for is not None:
        problems.append(f"the worker's main loop has made no progress for more than {vitals.hung_for:g} s.")
    return Health(not problems, problems, link.snapshot.connected, list(vitals.leads))
