"""Other sessions take all of the server's connection slots."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import psycopg2
import pytest

from tests.arena.requirements import require
from tests.arena.servers import Database, Postgres
from tests.arena.waiting import wait_until
from tests.faults import scenes, troubles
from tests.faults.scenes import PROCESS, QUEUE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres]

SLOTS = 12
RESERVED = 3


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    require(Postgres.available())
    slots: dict[str, str | int] = {
        "max_connections": SLOTS,
        "superuser_reserved_connections": RESERVED,
        "max_wal_senders": 0,
        "wal_level": "minimal",
    }
    with Postgres(settings={**troubles.SETTINGS, **slots}) as server:
        yield server


@pytest.fixture
def postgres(own_server: Postgres) -> Database:
    database = own_server.create_database("shop")
    troubles.make_role(database)
    return database


class Crowd:
    """Sessions that come to stay."""

    def __init__(self, database: Database, *, superuser: bool = False) -> None:
        self._url = database.url(None) if superuser else troubles.url(database).replace("+psycopg2", "")
        self.sessions: list[psycopg2.extensions.connection] = []

    def grow(self) -> int:
        """Take every slot that is left; return how many sessions there are."""
        with contextlib.suppress(psycopg2.OperationalError):
            while True:
                session = psycopg2.connect(self._url, application_name="crowd")
                session.autocommit = True
                self.sessions.append(session)
        return len(self.sessions)

    def go(self) -> None:
        """Free the slots."""
        while self.sessions:
            self.sessions.pop().close()


def rob(crowds: list[Crowd]) -> int:
    """End the lock sessions and take their slots, which a node may have got back first; return how big the crowd is."""
    with crowds[0].sessions[0].cursor() as cursor:  # there is no slot for a further session
        cursor.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name ~ '^highlander'")
    crowds[-1].grow()
    return sum(len(crowd.sessions) for crowd in crowds)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reserved_are_left", "driver"),
    [(True, "psycopg2"), pytest.param(False, "psycopg", marks=pytest.mark.slow)],
)
def test_a_leader_goes_on_without_free_slots_and_nobody_acts_until_there_are_some(
    cluster: MakeCluster, postgres: Database, reserved_are_left: bool, driver: str
) -> None:
    shop = cluster("redis", url=troubles.url(postgres, driver))
    troubles.grant_role(postgres)
    scenes.leader_and_standby(shop)
    tokens = {singleton: shop.latest(singleton)[1] for singleton in (QUEUE, PROCESS)}
    crowds = [Crowd(postgres), *([] if reserved_are_left else [Crowd(postgres, superuser=True)])]
    try:
        assert [crowd.grow() for crowd in crowds] == [SLOTS - RESERVED - 2, RESERVED][: len(crowds)]
        scenes.finishes(shop, task="ordinary", queue="celery")
        assert {singleton: shop.latest(singleton)[1] for singleton in tokens} == tokens

        trouble = troubles.Trouble(shop, postgres.server)
        wait_until(lambda: rob(crowds) == (SLOTS - RESERVED if reserved_are_left else SLOTS), 20, "a full server")
        trouble.begins()
        trouble.tells("connection slots" if reserved_are_left else "too many clients")
        trouble.lasts(9.0)
    finally:
        for crowd in crowds:
            crowd.go()
    trouble.is_followed_by_a_new_term()
