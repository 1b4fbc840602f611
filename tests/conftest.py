"""Servers for all tests: one per session, with a database of its own for each test."""

from __future__ import annotations

import contextlib
import itertools
import os
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from kombu import Connection as KombuConnection

from tests.arena.requirements import require
from tests.arena.run_cluster import RunCluster
from tests.arena.servers import Database, Postgres, RabbitMQ, Redis

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

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


class MakeRunCluster(Protocol):
    """The `runs` fixture."""

    def __call__(
        self,
        broker: str = "redis",
        *,
        driver: str = "psycopg2",
        url: str | None = None,
        conf: Mapping[str, Any] | None = None,
        pool: str | None = None,
    ) -> RunCluster:
        """Make a cluster of the app with singleton tasks, without workers; results are in Redis."""


@pytest.fixture
def runs(request: pytest.FixtureRequest, tmp_path: Path, postgres: Database) -> Iterator[MakeRunCluster]:
    with contextlib.ExitStack() as stack:

        def make(
            broker: str = "redis",
            *,
            driver: str = "psycopg2",
            url: str | None = None,
            conf: Mapping[str, Any] | None = None,
            pool: str | None = None,
        ) -> RunCluster:
            results: Redis = request.getfixturevalue("redis_server")
            server: Redis | RabbitMQ = request.getfixturevalue(f"{broker}_server")
            stack.callback(_empty, results, server)
            urls = {"broker_url": server.url(), "result_backend": results.url()}
            made = stack.enter_context(RunCluster(url or postgres.url(driver), urls, tmp_path, conf, pool))
            stack.callback(_show, made)
            return made

        yield make


def _empty(*servers: Redis | RabbitMQ) -> None:
    for server in servers:
        if isinstance(server, Redis):
            server.command("FLUSHALL")
            continue
        with KombuConnection(server.url()) as connection:
            for queue in ("celery", "one", "two", "three"):
                with contextlib.suppress(*connection.channel_errors):
                    connection.channel().queue_delete(queue)


def _show(cluster: RunCluster) -> None:
    """What pytest shows of a test that fails."""
    for worker in cluster.workers:
        print(f"--- {worker.name}, pid {worker.pid}")
        print("\n".join(worker.log.splitlines()[-60:]))
    with contextlib.suppress(ValueError):
        print(f"--- referee\n{cluster.referee().report()}")
