"""Every contract holds on every PostgreSQL that is installed, with either driver."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest

from tests.arena.requirements import require
from tests.arena.servers import Database, Installation, Postgres, installations

if TYPE_CHECKING:
    from collections.abc import Iterator

_numbers = itertools.count(1)
_INSTALLATIONS: list[Installation | None] = [*installations()] or [None]


def _name(installation: Installation | None) -> str:
    return f"pg{installation.version}" if installation else "absent"


@pytest.fixture(scope="session", params=_INSTALLATIONS, ids=_name)
def server(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    require(Postgres.available())
    with Postgres(installation=request.param) as postgres:
        yield postgres


@pytest.fixture(scope="session")
def _database(server: Postgres) -> Database:
    return server.create_database(f"contract_{os.getpid()}_{next(_numbers)}")


@pytest.fixture
def database(_database: Database) -> Database:
    """An empty database: a quarter of the time that a new one takes."""
    schemas = _database.execute("select nspname from pg_namespace where nspname !~ '^(pg_|information_schema)'")
    for (schema,) in schemas:
        _database.execute(f'drop schema "{schema}" cascade')
    _database.execute("create schema public")
    _database.execute("grant usage on schema public to public")
    return _database


@pytest.fixture(params=["psycopg2", "psycopg"])
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(database: Database, driver: str) -> str:
    return database.url(driver)
