"""Clusters for the fault tests, and what a failing test shows of them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from kombu import Connection as KombuConnection
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from celery_highlander.election.keys import lock_key
from celery_highlander.election.node import Mark
from celery_highlander.store import connecting, migrations
from celery_highlander.store.terms import Identity, Terms
from tests.arena import network
from tests.arena.beats import BEAT, BeatCluster
from tests.arena.cluster import Cluster, chosen_pool
from tests.arena.requirements import require
from tests.arena.servers import Postgres, RabbitMQ, Redis
from tests.faults.hosts import Hosts
from tests.faults.scenes import QUEUE

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping
    from pathlib import Path

    from tests.arena.servers import Database

_SHOWN_LINES = 60
_FAILED = pytest.StashKey[bool]()
_NAMESPACE = "shop"


class MakeCluster(Protocol):
    """The `cluster` fixture."""

    def __call__(
        self,
        broker: str = "rabbitmq",
        *,
        driver: str = "psycopg2",
        url: str | None = None,
        processes: Mapping[str, str] | None = None,
        conf: Mapping[str, Any] | None = None,
        pool: str | None = None,
    ) -> Cluster:
        """Make a cluster without workers, in which every singleton has been led before.

        Args:
            broker: "rabbitmq" or "redis".
            driver: The database driver of the workers.
            url: The workers' way to the database, where it is not the direct one.
            processes: The singleton processes; a well-behaved `ticker` if not given.
            conf: Further configuration.
            pool: The workers' pool.
        """


class MakeBeats(Protocol):
    """The `beats` fixture."""

    def __call__(
        self,
        entries: Mapping[str, Mapping[str, Any]],
        broker: str = "redis",
        *,
        driver: str = "psycopg2",
        url: str | None = None,
        conf: Mapping[str, Any] | None = None,
    ) -> BeatCluster:
        """Make a cluster without beats and workers, in which the beat has been led before."""


class MakeHostCluster(Protocol):
    """The `host_cluster` fixture."""

    def __call__(self, conf: Mapping[str, Any] | None = None) -> Cluster:
        """Make a cluster without workers; `hosts.start` starts them."""


@pytest.fixture(scope="module")
def hosts(request: pytest.FixtureRequest) -> Iterator[Hosts]:
    """Hosts with links to cut; to be parametrized (indirectly) with the broker."""
    require(network.available())
    require(Postgres.available())
    require((Redis if request.param == "redis" else RabbitMQ).available())
    with Hosts(request.param) as made:
        yield made


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked as being about other pools than the chosen one."""
    marker = item.get_closest_marker("pool")
    if marker is not None and chosen_pool() not in marker.args:
        pytest.skip(f"not on the pool {chosen_pool()!r}: {marker.kwargs['reason']}")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    outcome = yield
    if outcome.get_result().failed:
        item.stash[_FAILED] = True


@pytest.fixture
def cluster(request: pytest.FixtureRequest, tmp_path: Path, postgres: Database) -> Iterator[MakeCluster]:
    with contextlib.ExitStack() as stack:

        def make(
            broker: str = "rabbitmq",
            *,
            driver: str = "psycopg2",
            url: str | None = None,
            processes: Mapping[str, str] | None = None,
            conf: Mapping[str, Any] | None = None,
            pool: str | None = None,
        ) -> Cluster:
            all_processes = {"ticker": "tests.arena.shop:ticker"} if processes is None else dict(processes)
            conf = {"highlander_processes": all_processes, **(conf or {})}
            lead_once(postgres.url("psycopg2"), [*conf.get("highlander_queues", [QUEUE]), *all_processes])
            server: Redis | RabbitMQ = request.getfixturevalue(f"{broker}_server")
            stack.callback(empty, server)
            made = Cluster(url or postgres.url(driver), {"broker_url": server.url()}, tmp_path, conf, pool)
            stack.enter_context(made)
            stack.callback(_show, request.node, made)
            return made

        yield make


@pytest.fixture
def beats(request: pytest.FixtureRequest, tmp_path: Path, postgres: Database) -> Iterator[MakeBeats]:
    with contextlib.ExitStack() as stack:

        def make(
            entries: Mapping[str, Mapping[str, Any]],
            broker: str = "redis",
            *,
            driver: str = "psycopg2",
            url: str | None = None,
            conf: Mapping[str, Any] | None = None,
        ) -> BeatCluster:
            lead_once(postgres.url("psycopg2"), [QUEUE, BEAT])
            server: Redis | RabbitMQ = request.getfixturevalue(f"{broker}_server")
            stack.callback(empty, server)
            made = BeatCluster(url or postgres.url(driver), {"broker_url": server.url()}, tmp_path, entries, conf)
            stack.enter_context(made)
            stack.callback(_show, request.node, made)
            return made

        yield make


def empty(server: Redis | RabbitMQ, url: str | None = None) -> None:
    """Throw all messages away; `url` is the way to the broker where it is not the direct one."""
    if isinstance(server, Redis):
        server.command("FLUSHALL")
        return
    with KombuConnection(url or server.url()) as connection:
        for queue in (QUEUE, "celery", "ticks"):
            with contextlib.suppress(*connection.channel_errors):
                connection.channel().queue_delete(queue)


def lead_once(url: str, names: list[str]) -> None:
    """Give each singleton a first term that ended well: the next leader then owes nobody a lease."""
    keys = {name: lock_key(_NAMESPACE, name) for name in names}
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        migrations.migrate(connection, "")
        terms = Terms(connection, connecting.check_server(connection), keys, _NAMESPACE, "", 0.1)
        terms.poll(tuple(names), frozenset(names))
        begun: dict[str, Any] = terms.begin(names, Identity("first", "first@arena", 0), 0.0)
        for name in names:
            terms.release(name, Mark(name, begun[name].token, "first"))
    engine.dispose()


@pytest.fixture
def host_cluster(request: pytest.FixtureRequest, tmp_path: Path, hosts: Hosts) -> Iterator[MakeHostCluster]:
    """Makes clusters on the hosts."""
    with contextlib.ExitStack() as stack:

        def make(conf: Mapping[str, Any] | None = None) -> Cluster:
            made = stack.enter_context(hosts.cluster(tmp_path, conf))
            stack.callback(_show, request.node, made)
            return made

        yield make


def _show(item: pytest.Item, cluster: Cluster) -> None:
    if not item.stash.get(_FAILED, False):
        return
    for worker in cluster.workers:
        print(f"--- {worker.name}, pid {worker.pid}")
        print("\n".join(worker.log.splitlines()[-_SHOWN_LINES:]))
    with contextlib.suppress(ValueError):
        print(f"--- referee\n{cluster.referee().report()}")
