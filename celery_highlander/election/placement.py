"""How many singletons a node should lead, so that many spread over the nodes; knows nothing of locks."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

STEADY_AFTER = 10.0
"""Seconds for which the members have to stay the same before a node gives singletons away to spread them."""


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


class Placement:
    """One node's part of the singletons, as the members of the cluster come and go.

    Args:
        total: how many singletons there are; what a node rests from counts for nobody.
        patience: seconds for which nobody may lead a singleton before any node should take it.
    """

    def __init__(self, total: int, node: str, priority: int, patience: float) -> None:
        self.members: tuple[Member, ...] = ()
        self._total = total
        self._node = node
        self._priority = priority
        self._patience = patience
        self._steady_since = inf
        self._unled_since: dict[str, float] = {}
        self._taken_in: set[str] = set()  # beyond our share, since nobody else did: they stay until the members change

    def connected(self) -> None:
        """A session begins: who leads what has to be seen anew."""
        self._unled_since.clear()

    def disconnected(self) -> None:
        """The session is gone, and with it what was known of the others."""
        self.members = ()
        self._steady_since = inf

    def see(self, members: tuple[Member, ...], now: float) -> bool:
        """Take in who is there; return whether that has changed, and with it this node's share."""
        if members == self.members:
            return False
        self.members = members
        self._steady_since = now
        self._taken_in.clear()
        return True

    def is_there(self, nodes: Iterable[str]) -> bool:
        """Whether one of these nodes takes part."""
        wanted = set(nodes)
        return any(member.eligible and member.node in wanted for member in self.members)

    def room(self, held: int) -> int:
        """How many more singletons this node may take by its share, when it has `held` of them."""
        return fair_share(self._total, self._node, self._priority, self.members) - held

    def unled(self, name: str, now: float) -> None:
        """A poll has shown that this node does not lead `name`."""
        self._unled_since.setdefault(name, now)

    def is_overdue(self, name: str, seen_at: float | None, now: float) -> bool:
        """Whether nobody has led this singleton for so long that any node should take it.

        Args:
            name: the singleton.
            seen_at: when the last heartbeat of anybody's term was seen first; None where none was.
            now: the present.
        """
        since = self._unled_since.get(name, now)
        if seen_at is not None:
            since = max(since, seen_at)
        return now - since > self._patience

    def taken(self, name: str, *, beyond_share: bool) -> None:
        """This node has the lock of `name`; one that it took beyond its share stays until the members change."""
        self._unled_since.pop(name, None)
        if beyond_share:
            self._taken_in.add(name)

    def surplus(self, leading: list[str], held: int, now: float) -> list[str]:
        """What of `leading` to step down from: it exceeds this node's share, without what was taken beyond that."""
        held -= sum(name in self._taken_in for name in leading)
        return self.movable(leading, now)[: max(0, -self.room(held))]

    def movable(self, leading: list[str], now: float) -> list[str]:
        """What of `leading` may be given to another node just for a better place; nothing while members come and go."""
        if now - self._steady_since < STEADY_AFTER:
            return []
        return [name for name in leading if name not in self._taken_in]
