"""The simulator's model of the database keeps the contract that PostgreSQL keeps."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from celery_highlander.store.runs import SETTLED
from tests.contract.run_contract import LEASE, DisasterContract, RunContract
from tests.simulator.runs.database import Database, RunSession

if TYPE_CHECKING:
    from collections.abc import Iterator


class ModelSession:
    """A session of the model."""

    def __init__(self, database: Database, holder: str, lease: float) -> None:
        self.holder = holder
        self.runs = RunSession(database, holder, lease)

    def lose(self) -> None:
        self.runs.end()


class ModelBench:
    """A model of the database."""

    def __init__(self) -> None:
        self._database = Database()
        self._numbers = 0

    def session(self, node: str = "n1", lease: float = LEASE) -> ModelSession:
        self._numbers += 1
        return ModelSession(self._database, f"{node}/{self._numbers}", lease)

    def rows(self) -> dict[int, str]:
        return {key: row.holder for key, row in self._database.rows.items() if key != SETTLED}

    def locks(self) -> set[int]:
        return set(self._database.locks)

    def clear_row(self, key: int) -> None:
        del self._database.rows[key]

    @contextmanager
    def fenced(self, key: int, token: int) -> Iterator[None]:
        assert self._database.tokens[key] == token
        self._database.fenced.add(key)
        yield
        self._database.fenced.discard(key)

    def restart(self) -> None:
        self._database.restart()

    def crash(self) -> None:
        self._database.crash()

    def promote(self) -> None:
        self._database.promote()


@pytest.fixture
def bench() -> ModelBench:
    return ModelBench()


class TestTheModel(RunContract):
    """The contract."""


class TestDisastersOfTheModel(DisasterContract):
    """The contract."""
