"""The wall clock of the database server, or of a worker, is set an hour forward or back between two heartbeats."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.arena import wall_clock
from tests.arena.journal import now_ns
from tests.arena.requirements import require
from tests.arena.servers import Database, Postgres
from tests.arena.waiting import wait_until
from tests.arena.wall_clock import WallClock
from tests.faults import scenes
from tests.faults.hosts import LEASE, NOISE, POLL, PROMISED
from tests.faults.scenes import PATIENCE, PROCESS, QUEUE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.arena.cluster import Cluster, Worker
    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres, pytest.mark.redis]

HOUR = 3600
UNSEEN = 0.4 + POLL + 0.2  # by so much the last heartbeat was older at most than the death: interval, and a moment
BOTH_WAYS = pytest.mark.parametrize(
    "step", [pytest.param(-HOUR, id="back"), pytest.param(HOUR, id="forward", marks=pytest.mark.slow)]
)


@pytest.fixture
def server_clock() -> WallClock:
    require(wall_clock.available())
    return WallClock()


@pytest.fixture
def postgres(server_clock: WallClock) -> Iterator[Database]:
    """In place of the one on the shared server: this one goes by its own clock."""
    require(Postgres.available())
    with Postgres(env=server_clock.environment) as server:
        yield server.create_database("shop")


def wrong_at(database: Database) -> int:
    """By how many hours the server's clock is wrong."""
    return round((float(database.execute("select extract(epoch from clock_timestamp())")[0][0]) - time.time()) / HOUR)


def wrong_in(worker: Worker) -> int:
    """By how many hours a worker's clock was wrong when it logged its latest line, not long ago."""
    stamp = [line[1:20] for line in worker.log.splitlines() if line.startswith("[20")][-1]
    return round((time.mktime(time.strptime(stamp, "%Y-%m-%d %H:%M:%S")) - time.time()) / HOUR)


def keeps_leading(shop: Cluster, since: int) -> None:
    """Two leases later somebody acts, nobody beside another, and nothing was without a leader for too long."""
    wait_until(lambda: now_ns() - since > 2 * LEASE * 1e9, PATIENCE, "two leases after the step")
    for singleton in (QUEUE, PROCESS):
        scenes.beats_on(shop, singleton)
    shop.referee().verdict(QUEUE, PROCESS)
    longest = max([gap.duration / 1e9 for gap in shop.referee().gaps(PROCESS)], default=0.0)
    print(f"MEASURED clock step: {PROCESS!r} was led by nobody for at most {longest:.2f} s")
    assert longest < PROMISED + NOISE


def kill_with_its_keeper(worker: Worker) -> None:
    """Nobody is left to leave a stopped mark."""
    keeper = worker.keeper
    os.kill(keeper, signal.SIGKILL)
    worker.send(signal.SIGKILL)


def taken_over_in_time(shop: Cluster, tokens: dict[str, int]) -> None:
    """Not before the dead leader's lease is over, and not long after it."""
    for singleton, token in tokens.items():
        scenes.acts(shop, singleton, token)
        gap = scenes.gap(shop, singleton, token)
        print(f"MEASURED clock step: {singleton!r} was taken over after {gap:.2f} s")
        assert LEASE - UNSEEN < gap < PROMISED + NOISE
    shop.referee().verdict(QUEUE, PROCESS)


@pytest.mark.slow
@BOTH_WAYS
def test_the_servers_clock_does_not_matter(
    cluster: MakeCluster, postgres: Database, server_clock: WallClock, step: int
) -> None:
    shop = cluster("redis")
    scenes.leader_and_standby(shop)
    server_clock.step(step)
    stepped_at = now_ns()
    assert wrong_at(postgres) == step // HOUR
    keeps_leading(shop, stepped_at)
    leader = shop.leader(PROCESS)
    tokens = {PROCESS: scenes.acts(shop, PROCESS)}
    kill_with_its_keeper(leader)
    server_clock.step(2 * step)
    taken_over_in_time(shop, tokens)
    assert wrong_at(postgres) == 2 * step // HOUR


@pytest.mark.slow
@BOTH_WAYS
def test_a_workers_clock_does_not_matter(cluster: MakeCluster, step: int) -> None:
    shop = cluster("redis")
    clocks = [WallClock(), WallClock()]
    envs = [clock.environment for clock in clocks]
    leader, standby = scenes.leader_and_standby(shop, leader_env=envs[0], standby_env=envs[1])
    tokens = {singleton: scenes.acts(shop, singleton) for singleton in (QUEUE, PROCESS)}
    clocks[0].step(step)
    clocks[1].step(-step)
    keeps_leading(shop, now_ns())
    assert {singleton: scenes.acts(shop, singleton) for singleton in (QUEUE, PROCESS)} == tokens
    kill_with_its_keeper(leader)
    clocks[1].step(-2 * step)
    taken_over_in_time(shop, tokens)
    assert shop.leader(PROCESS) is standby
    assert wrong_in(standby) == -2 * step // HOUR
