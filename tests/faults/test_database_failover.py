"""An asynchronous standby that lacks the newest terms is promoted, while the old primary still runs.

The workers are switched over to it. Tokens rise although their rows were lost, the new leader waits a whole lease,
and whatever the old one still writes under its token is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from celery_highlander.errors import StaleTermError
from celery_highlander.store.fencing import fence
from tests.arena.proxy import TcpProxy
from tests.arena.requirements import require
from tests.arena.servers import Database, Postgres
from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.hosts import LEASE, NOISE, PROMISED
from tests.faults.scenes import PATIENCE, PROCESS, QUEUE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.arena.cluster import Cluster
    from tests.arena.servers import Standby
    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres, pytest.mark.redis]

LONGEST_RECONNECT = 3.0  # the last delay between two attempts
STUBBORN = {PROCESS: "tests.arena.shop:stubborn"}


@pytest.fixture
def primary() -> Iterator[Postgres]:
    require(Postgres.available())
    with Postgres() as server:
        yield server


@pytest.fixture
def postgres(primary: Postgres) -> Database:
    """In place of the one on the shared server."""
    return primary.create_database("shop")


@pytest.fixture
def replication(primary: Postgres) -> Iterator[TcpProxy]:
    """The way from the standby to its primary."""
    with TcpProxy("127.0.0.1", primary.port) as proxy:
        yield proxy


@pytest.fixture
def standby(postgres: Database, replication: TcpProxy) -> Iterator[Standby]:
    with postgres.server.standby(through=(replication.host, replication.port)) as server:
        yield server


def begin_terms_that_are_lost(shop: Cluster, standby: Standby, replication: TcpProxy) -> dict[str, int]:
    """Stop the replication, and begin another term of each singleton; return the tokens, known to the primary alone."""
    old = {singleton: scenes.acts(shop, singleton) for singleton in (QUEUE, PROCESS)}
    standby.wait_for_replay()
    replication.cut()
    shop.query("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'highlander %%'")
    lost = {singleton: scenes.acts(shop, singleton, token) for singleton, token in old.items()}
    known = dict(standby.execute("select name, token from highlander_singleton", dbname="shop"))
    assert all(known[singleton] < token for singleton, token in lost.items())
    return lost


def write_under(engine: Any, token: int) -> None:
    """What a leader does that writes under its token, in the namespace of the shop."""
    with engine.begin() as connection:
        fence(connection, "shop", PROCESS, token)
        connection.execute(text("create table if not exists written (token bigint)"))


def judge(shop: Cluster, standby: Standby, lost: dict[str, int]) -> None:
    """What must hold once the new primary's leaders act."""
    for singleton, token in lost.items():
        assert scenes.acts(shop, singleton, token) > token
    sql = (
        "select s.name, extract(epoch from t.elected_at - t.began_at)::float from highlander_term t"
        " join highlander_singleton s on s.key = t.key and s.token = t.token where t.elected_at is not null"
    )
    waited = dict(standby.execute(sql, dbname="shop"))
    print(f"MEASURED failover: waited {waited} s in their terms before they acted")
    assert set(waited) == {QUEUE, PROCESS}
    assert all(seconds >= LEASE for seconds in waited.values())
    for singleton, token in lost.items():
        gap = scenes.gap(shop, singleton, token)
        print(f"MEASURED failover: {singleton!r} was led by nobody for {gap:.2f} s")
        assert gap < PROMISED + LONGEST_RECONNECT + NOISE
    scenes.finishes(shop)
    assert all(worker.is_running for worker in shop.workers)
    shop.referee().verdict(QUEUE, PROCESS)


def test_nobody_acts_too_early_after_a_failover_that_lost_the_newest_terms(
    cluster: MakeCluster, postgres: Database, standby: Standby, replication: TcpProxy
) -> None:
    with TcpProxy("127.0.0.1", postgres.server.port) as way:
        shop = cluster("redis", processes=STUBBORN, conf={"highlander_url": postgres.url(port=way.port)})
        scenes.leader_and_standby(shop)
        lost = begin_terms_that_are_lost(shop, standby, replication)
        on_the_old_primary, on_the_new = (
            create_engine(url, poolclass=NullPool) for url in (postgres.url(), standby.url(dbname="shop"))
        )
        write_under(on_the_old_primary, lost[PROCESS])  # it is a leader's token
        way.target = ("127.0.0.1", standby.port)
        standby.promote()
        way.reset()
        shop.url = standby.url(dbname="shop")
        judge(shop, standby, lost)
        with pytest.raises(StaleTermError):
            write_under(on_the_new, lost[PROCESS])
        assert postgres.server.is_running


@pytest.mark.slow
def test_a_stopped_mark_from_before_a_failover_says_nothing_of_the_terms_that_were_lost(
    cluster: MakeCluster, postgres: Database, standby: Standby, replication: TcpProxy
) -> None:
    with TcpProxy("127.0.0.1", postgres.server.port) as way:
        shop = cluster("redis", processes=STUBBORN, conf={"highlander_url": postgres.url(port=way.port)})
        standby.wait_for_replay()
        replication.cut()  # the standby knows of the first terms, which ended well, and of nothing else
        ended_well = "select count(*) from highlander_term where stopped_at is not null"
        assert standby.execute(ended_well, dbname="shop") == [(2,)]
        scenes.leader_and_standby(shop)
        lost = {singleton: scenes.acts(shop, singleton) for singleton in (QUEUE, PROCESS)}
        way.target = ("127.0.0.1", standby.port)
        standby.promote()
        way.reset()
        shop.url = standby.url(dbname="shop")
        judge(shop, standby, lost)


@pytest.mark.slow
def test_workers_with_the_addresses_of_both_servers_find_the_promoted_one(
    cluster: MakeCluster, postgres: Database, standby: Standby, replication: TcpProxy
) -> None:
    both = f"host=127.0.0.1:{postgres.server.port}&host=127.0.0.1:{standby.port}&target_session_attrs=read-write"
    shop = cluster(
        "redis",
        processes=STUBBORN,
        conf={"highlander_url": f"postgresql+psycopg2://postgres@/{postgres.name}?{both}"},
    )
    scenes.leader_and_standby(shop)
    lost = begin_terms_that_are_lost(shop, standby, replication)
    postgres.server.pause()  # it runs, and nobody reaches it
    standby.promote()
    shop.url = standby.url(dbname="shop")
    judge(shop, standby, lost)
    postgres.server.resume()
    wait_until(lambda: shop.lock_sessions() == 2, PATIENCE, "both lock sessions on the new primary")
    scenes.finishes(shop)
    shop.referee().verdict(QUEUE, PROCESS)
