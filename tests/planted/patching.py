"""How a bug is planted: names of the election or of the modelled server are replaced, and put back afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from celery_highlander.election import protocol as p
from tests.simulator.batch import Failure, failure_of

Plant = Callable[["Soil"], None]


class Soil:
    """Replaces things until it is closed."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def attribute(self, owner: object, name: str, value: object) -> None:
        """Replace a function of a module, or a method of a class."""
        self._stack.enter_context(patch.object(owner, name, value))

    def move(self, phase: p.Phase, event: type, move: Callable[..., p.Outcome], *outcomes: p.Phase) -> None:
        """Replace a move of the table, and allow it more phases to lead to."""
        table: Any = p.TRANSITIONS
        _, allowed = table.get((phase, event), (None, frozenset()))
        self._stack.enter_context(patch.dict(table, {(phase, event): (move, allowed | set(outcomes))}))


@dataclass(frozen=True, slots=True)
class Bug:
    """A planted bug.

    Attributes:
        name: what is done wrong.
        plant: does it.
        profile: the family of schedules that is searched.
        judge: runs one of them, and tells what went wrong.
    """

    name: str
    plant: Plant
    profile: str | None = None
    judge: Callable[[int, str | None], Failure | None] = failure_of


@contextmanager
def planted(bug: Bug) -> Iterator[None]:
    """Run the body with the bug in the code of this process."""
    with ExitStack() as stack:
        bug.plant(Soil(stack))
        yield
