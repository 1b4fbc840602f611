"""A leader and a standby, the database and the broker, each on a host of its own with a link that can be cut."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Literal

from tests.arena.cluster import Cluster
from tests.arena.journal import now_ns
from tests.arena.network import Network
from tests.arena.proxy import TcpProxy
from tests.arena.servers import Postgres, RabbitMQ, Redis
from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.scenes import PATIENCE, PROCESS, QUEUE, QUIET

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from typing_extensions import Self

    from tests.arena.cluster import Worker
    from tests.arena.servers import Database

Way = Literal["both", "out", "in"]
"""Whose packets are dropped: everybody's, those that leave the leader's host, those that come to it."""

LEADER, STANDBY, DATABASE, BROKER = "leader", "standby", "database", "broker"
LEASE, POLL, DRAIN = 3.0, 0.3, 1.0  # of the arena's TIMELY settings; the poll interval with its jitter
PROMISED = LEASE + POLL + 1.0
"""Seconds from a cut of the database to a takeover."""

NOISE = 3.0
"""Seconds that a busy machine may add to what is promised."""


class Hosts:
    """The hosts, and the servers on two of them; the test itself reaches the servers through doors of its own.

    Args:
        broker: "rabbitmq" or "redis".
    """

    def __init__(self, broker: str) -> None:
        self.network = Network([LEADER, STANDBY, DATABASE, BROKER])
        self._kind = broker
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            network = stack.enter_context(self.network)
            at = network.host(DATABASE)
            self.postgres = stack.enter_context(Postgres(netns=at.netns, listen=(at.address,)))
            self._database_door = self._door(stack, self.postgres.port, DATABASE)
            at = network.host(BROKER)
            make = Redis if self._kind == "redis" else RabbitMQ
            self.broker: Redis | RabbitMQ = make(netns=at.netns, listen=at.address)
            stack.enter_context(self.broker)
            self._broker_door = self._door(stack, self.broker.port, BROKER)
            self._exits = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._exits.close()

    def _door(self, stack: contextlib.ExitStack, port: int, name: str) -> TcpProxy:
        host = self.network.host(name)
        return stack.enter_context(TcpProxy(host.address, port, netns=host.netns))

    @contextlib.contextmanager
    def cluster(self, directory: Path, conf: Mapping[str, Any] | None = None) -> Iterator[Cluster]:
        """A cluster without workers on a fresh database; every cut is healed when it ends."""
        from tests.faults.conftest import lead_once

        name = f"shop_{directory.name}"[:60]
        database: Database = self.postgres.create_database(name)
        way = database.url(host=self._database_door.host, port=self._database_door.port)
        broker = self.broker.url().replace(
            f"{self.broker.listen}:{self.broker.port}", f"{self._broker_door.host}:{self._broker_door.port}"
        )
        conf = {"highlander_processes": {PROCESS: "tests.arena.shop:ticker"}, **(conf or {})}
        lead_once(way, [QUEUE, PROCESS])
        self._workers_conf = {"broker_url": self.broker.url(), "highlander_url": database.url()}
        try:
            with Cluster(way, {"broker_url": broker}, directory, conf) as cluster:
                yield cluster
        finally:
            self.network.heal()
            database.drop()
            self._empty(broker)

    def _empty(self, url: str) -> None:
        from tests.faults.conftest import empty

        empty(self.broker, url)

    def start(self, cluster: Cluster, host: str, *options: str, conf: Mapping[str, Any] | None = None) -> Worker:
        """Start a worker on a host."""
        return cluster.start(
            *QUIET,
            *options,
            conf={**self._workers_conf, **(conf or {})},
            concurrency=2,
            prefix=self.network.run_in(host, []),
            name=host,
        )

    def leader_and_standby(self, cluster: Cluster, *, task_seconds: float = 600.0) -> tuple[Worker, Worker]:
        """As `scenes.leader_and_standby`, each on its host."""
        leader = self.start(cluster, LEADER, "--highlander-priority", "1")
        cluster.leader(PROCESS, timeout=PATIENCE)
        standby = self.start(cluster, STANDBY)
        cluster.leader(QUEUE, timeout=PATIENCE)
        cluster.send(0, seconds=task_seconds)
        for singleton in (QUEUE, PROCESS):
            scenes.acts(cluster, singleton)
        scenes.ready(standby)
        return leader, standby

    def cut(self, other: str, way: Way = "both") -> int:
        """Drop packets between the leader's host and another one; return the instant."""
        if way in ("both", "out"):
            self.network.cut_between(LEADER, other)
        if way in ("both", "in"):
            self.network.cut_between(other, LEADER)
        return now_ns()

    def cut_off(self) -> int:
        """Drop every packet from and to the leader's host; return the instant."""
        self.network.cut(LEADER)
        return now_ns()


def taken_over(cluster: Cluster, tokens: Mapping[str, int], cut_at: int, what: str) -> dict[str, tuple[float, float]]:
    """Wait until somebody else acts for each of these singletons (name to token).

    Returns:
        Seconds from the cut to the last line under the old token, and to the first line under a later one, by name.
    """
    found = {}
    for singleton, token in tokens.items():
        scenes.acts(cluster, singleton, token)
        spells = cluster.referee().spells(singleton)
        last = max(spell.last for spell in spells if spell.owner.token == str(token))
        first = min(spell.first for spell in spells if int(spell.owner.token) > token)
        found[singleton] = ((last - cut_at) / 1e9, (first - cut_at) / 1e9)
        ended, began = found[singleton]
        print(f"MEASURED {what}: {singleton!r} ended {ended:.2f} s and began elsewhere {began:.2f} s after the cut")
    return found


def leads_again(cluster: Cluster, leader: Worker, standby: Worker) -> None:
    """After the healing: the worker that was cut off is alive, connected, and leads when the other one dies."""
    wait_until(lambda: cluster.lock_sessions() == 2, PATIENCE, "both lock sessions")
    tokens = {singleton: cluster.latest(singleton)[1] for singleton in (QUEUE, PROCESS)}
    standby.close()
    for singleton, token in tokens.items():
        assert cluster.leader(singleton, other_than=token, timeout=PATIENCE) is leader
    scenes.finishes(cluster)
    scenes.acts(cluster, PROCESS, tokens[PROCESS])
    assert leader.is_running
    cluster.referee().verdict(QUEUE, PROCESS)
