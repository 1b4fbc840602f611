"""How many singletons a node should lead, so that many spread over the nodes; knows nothing of locks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Member:
    """A node whose lock session lives: its id, and its priority (the higher, the sooner it leads)."""

    node: str
    priority: int
    eligible: bool


def fair_share(total: int, node: str, priority: int, members: Iterable[Member]) -> int:
    """Return how many of `total` singletons `node` should lead at most.

    The eligible members of the highest priority share evenly, rounded up; the others' share is 0: they take only what
    nobody else does. A node that does not see itself yet counts itself.
    """
    rivals = {member.node: member.priority for member in members if member.eligible}
    rivals[node] = priority
    top = max(rivals.values())
    if priority < top:
        return 0
    sharing = sum(1 for value in rivals.values() if value == top)
    return -(-total // sharing)
