"""A primary whose synchronous standby is gone: reads are answered in a millisecond, commits never are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.arena.journal import now_ns
from tests.arena.requirements import require
from tests.arena.servers import Database, Postgres
from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.hosts import LEASE, NOISE, PROMISED
from tests.faults.scenes import PATIENCE, PROCESS, QUEUE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres, pytest.mark.redis]

LONGEST_RECONNECT = 3.0  # the last delay between two attempts
OBSERVED = 12.0


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    require(Postgres.available())
    with Postgres() as server:
        yield server
        server.stop("immediate")  # it would wait for its standby


@pytest.fixture
def postgres(own_server: Postgres) -> Database:
    """In place of the one on the shared server."""
    return own_server.create_database("shop")


def wait_for_a_standby(server: Postgres, name: str) -> None:
    """Have commits wait for this standby, or for none if the name is empty."""
    server.execute(f"alter system set synchronous_standby_names = '{name}'")
    server.execute("select pg_reload_conf()")


@pytest.mark.parametrize("driver", ["psycopg2", pytest.param("psycopg", marks=pytest.mark.slow)])
def test_a_leader_whose_commits_hang_stops_in_time_and_nobody_else_begins(
    cluster: MakeCluster, own_server: Postgres, driver: str
) -> None:
    shop = cluster("redis", driver=driver, processes={PROCESS: "tests.arena.shop:stubborn"})
    workers = scenes.leader_and_standby(shop)
    tokens = {singleton: scenes.acts(shop, singleton) for singleton in (QUEUE, PROCESS)}
    hangs_at = now_ns()
    wait_for_a_standby(own_server, "gone")
    wait_until(lambda: now_ns() - hangs_at > OBSERVED * 1e9, 2 * PATIENCE, "a while of hanging commits")
    for singleton, token in tokens.items():
        spells = shop.referee().spells(singleton)
        assert {spell.owner.token for spell in spells} == {str(token)}  # nobody else
        ended = (max(spell.last for spell in spells) - hangs_at) / 1e9
        print(f"MEASURED hanging commits: {singleton!r} ended {ended:.2f} s after the first")
        assert ended < LEASE
    sessions = shop.lock_sessions()
    print(f"MEASURED hanging commits: {sessions} lock sessions of {len(workers)} nodes after {OBSERVED:g} s")
    # A backend that waits for a standby outlives its client. Only those pile up, and there is one for each row at most:
    # the next attempt to write it gives up at the row's lock.
    assert sessions <= len(workers) + 4
    healed_at = now_ns()
    wait_for_a_standby(own_server, "")
    for singleton, token in tokens.items():
        scenes.acts(shop, singleton, token)
        first = min(spell.first for spell in shop.referee().spells(singleton) if int(spell.owner.token) > token)
        print(f"MEASURED hanging commits: {singleton!r} was led {(first - healed_at) / 1e9:.2f} s after their end")
        assert (first - healed_at) / 1e9 < PROMISED + LONGEST_RECONNECT + NOISE
    scenes.finishes(shop)
    assert all(worker.is_running for worker in workers)
    shop.referee().verdict(QUEUE, PROCESS)
