"""Servers for all tests: one per session, with a database of its own for each test."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest

from tests.arena.requirements import require
from tests.arena.servers import Database, Postgres, RabbitMQ, Redis

if TYPE_CHECKING:
    from collections.abc import Iterator

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    require(Postgres.available())
    with Postgres() as server:
        yield server


@pytest.fixture
def postgres(postgres_server: Postgres) -> Iterator[Database]:
    database = postgres_server.create_database(f"test_{os.getpid()}_{next(_numbers)}")
    yield database
    database.drop()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    require(Redis.available())
    with Redis() as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[RabbitMQ]:
    require(RabbitMQ.available())
    with RabbitMQ() as server:
        yield server
