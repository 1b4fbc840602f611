"""What operators ask of the nodes, as they read it with their polls: pause, step down, drain, prefer; pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Kind(Enum):
    """What is asked for."""

    PAUSE = "pause"  # nobody leads the singleton until it is resumed
    STEP_DOWN = "step-down"  # the term of this very token ends
    DRAIN = "drain"  # the node leads nothing
    PREFER = "prefer"  # the singleton belongs to a node, as long as that one is there

    @property
    def lasts(self) -> bool:
        """Whether it keeps somebody from leading until it is taken back."""
        return self in (Kind.PAUSE, Kind.DRAIN)


@dataclass(frozen=True, slots=True)
class Order:
    """One order.

    Attributes:
        kind: what is asked for.
        name: the singleton; empty for every one of the namespace.
        reason: what the log and the history say: who asked for it, and why.
        patient: running work may finish, however long it takes.
        token: of the term that has to end.
        nodes: the node to drain, or those that are preferred: all that go by the wanted name.
    """

    kind: Kind
    name: str
    reason: str
    patient: bool = True
    token: int | None = None
    nodes: frozenset[str] = frozenset()


class Orders:
    """The orders that hold now, as one node sees them."""

    def __init__(self, node: str, orders: Iterable[Order] = ()) -> None:
        self._node = node
        self.all = tuple(orders)

    def __bool__(self) -> bool:
        return bool(self.all)

    @property
    def drained(self) -> bool:
        """Whether this node has to lead nothing."""
        return any(order.kind is Kind.DRAIN and self._node in order.nodes for order in self.all)

    def forbids(self, name: str) -> bool:
        """Whether this node must not even try to lead `name`."""
        return self.against(name, None) is not None

    def against(self, name: str, token: int | None) -> Order | None:
        """Return an order that ends the term `token` of `name` on this node, an impatient one first."""
        found = [order for order in self.all if self._ends(order, name, token)]
        return min(found, key=lambda order: order.patient, default=None)

    def _ends(self, order: Order, name: str, token: int | None) -> bool:
        match order.kind:
            case Kind.PAUSE:
                return order.name in ("", name)
            case Kind.DRAIN:
                return self._node in order.nodes
            case Kind.STEP_DOWN:
                return order.name == name and order.token == token and token is not None
            case Kind.PREFER:
                return False

    def hands_on(self, name: str) -> bool:
        """Whether a leader of `name` has just been told to step down: then any other node should take it."""
        return any(order.kind is Kind.STEP_DOWN and order.name == name for order in self.all)

    def preferred(self, name: str) -> frozenset[str]:
        """Return the nodes to which `name` belongs; empty where it may be led anywhere."""
        nodes = [order.nodes for order in self.all if order.kind is Kind.PREFER and order.name == name]
        return frozenset().union(*nodes)
