"""The statements behind singleton runs, on PostgreSQL."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from celery_highlander.errors import SchemaError
from celery_highlander.store import migrations
from celery_highlander.store.fencing import fence_key
from celery_highlander.store.runs import RunLocks
from tests.arena.servers import Postgres
from tests.arena.waiting import wait_until
from tests.contract.nodes import LIMIT, Node
from tests.contract.run_contract import KEY, LEASE, DisasterContract, RunContract, attempt, identity, take

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.arena.servers import Database

pytestmark = pytest.mark.postgres

_LOCKS = (
    "select classid::bigint << 32 | objid::bigint from pg_locks where locktype = 'advisory' and granted "
    "and database = (select oid from pg_database where datname = current_database())"
)
_WAITS = "select 1 from pg_stat_activity where pid = %s and wait_event_type = 'Lock'"


class PostgresSession:
    """A lock session with its statements for runs."""

    def __init__(self, bench: PostgresBench, node: str, lease: float, user: dict[str, str]) -> None:
        self._database = bench.database
        self.node = Node(bench.database.url(bench.driver, **user), (), node, lease=lease)
        self.node.__enter__()
        bench.numbers += 1
        self.holder = f"{node}/{bench.numbers}"
        self.runs = RunLocks(self.node.connection, self.node.server, self.holder, "shop", "", lease)

    @property
    def pid(self) -> int:
        return self.node.server.backend_pid

    def lose(self) -> None:
        self.node.lose()
        gone = "select 1 from pg_stat_activity where pid = %s"
        wait_until(lambda: not self._database.execute(gone, self.pid), LIMIT, "the session to end")


class PostgresBench:
    """The tables in a database."""

    def __init__(self, database: Database, driver: str) -> None:
        self.database = database
        self.driver = driver
        self.numbers = 0
        self._sessions: list[PostgresSession] = []

    def session(self, node: str = "n1", lease: float = LEASE, **user: str) -> PostgresSession:
        session = PostgresSession(self, node, lease, user)
        self._sessions.append(session)
        return session

    def rows(self) -> dict[int, str]:
        return dict(self.database.execute("select key, holder from highlander_run where key <> -1"))

    def locks(self) -> set[int]:
        return {key for (key,) in self.database.execute(_LOCKS)}

    def clear_row(self, key: int) -> None:
        self.database.execute("delete from highlander_run where key = %s", key)

    @contextmanager
    def fenced(self, key: int, token: int) -> Iterator[None]:
        engine = create_engine(self.database.url(self.driver), poolclass=NullPool)
        with engine.connect() as connection, connection.begin():
            fence_key(connection, key, token, "the run")
            yield

    def close(self) -> None:
        for session in self._sessions:
            with suppress(Exception):  # its server may be gone
                session.node.lose()


@pytest.fixture
def bench(database: Database, driver: str) -> Iterator[PostgresBench]:
    made = PostgresBench(database, driver)
    yield made
    made.close()


class TestOnPostgres(RunContract):
    """The contract."""


def on_a_thread(call: Any) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()
    return thread, results


@pytest.mark.parametrize("limit", [1, 2])
def test_a_row_whose_deletion_is_not_committed_is_waited_for(
    bench: PostgresBench, database: Database, limit: int
) -> None:
    one, other = bench.session(), bench.session("n2")
    take(one)
    driver: Any = one.node.driver
    one.node.connection.execute(text("begin"))
    with driver.cursor() as cursor:
        cursor.execute(
            "delete from highlander_run where key = %s returning key, pg_advisory_unlock(key)", (KEY,)
        )  # what `free` does, halted before its end
    assert bench.rows() == {KEY: one.holder}
    thread, results = on_a_thread(lambda: take(other, attempt(limit=limit)))
    wait_until(lambda: database.execute(_WAITS, other.pid), LIMIT, "the try to wait for the row")
    assert not results
    one.node.connection.execute(text("commit"))
    thread.join(LIMIT)
    assert [found.taken for found in results] == [True]
    assert bench.rows() == {KEY: other.holder}


def test_a_row_is_deleted_before_its_lock_is_given_back(bench: PostgresBench, database: Database) -> None:
    holder, other = bench.session(), bench.session("n2")
    take(holder)
    with psycopg2.connect(database.url(None)) as stranger, stranger.cursor() as cursor:
        cursor.execute("select from highlander_run where key = %s for update", (KEY,))
        thread, results = on_a_thread(lambda: holder.runs.free([KEY]))
        wait_until(lambda: database.execute(_WAITS, holder.pid), LIMIT, "the deletion to wait for the row")
        assert take(other).key is None  # the lock is held as long as the row is there
    stranger.close()
    thread.join(LIMIT)
    assert results == [None]
    assert take(other).taken


def test_a_debt_is_of_whom_the_row_names_once_the_lock_is_got(bench: PostgresBench, database: Database) -> None:
    """A statement sees the rows as they were when it began; its lock may have gone from hand to hand since."""
    first, second, slow = bench.session(), bench.session("n2"), bench.session("n3")
    take(first)
    database.execute(  # a backend that is halted between its look at the rows and its try for the lock
        "create function public.pg_try_advisory_lock(bigint) returns boolean language plpgsql as "
        "$$ begin perform pg_advisory_xact_lock(77); return pg_catalog.pg_try_advisory_lock($1); end $$"
    )
    for setting in ("search_path = public, pg_catalog", "lock_timeout = 0", "statement_timeout = 0"):
        slow.node.connection.execute(text(f"set {setting}"))
    with psycopg2.connect(database.url(None)) as stranger, stranger.cursor() as cursor:
        cursor.execute("select pg_advisory_lock(77)")
        thread, results = on_a_thread(lambda: take(slow))
        wait_until(lambda: database.execute(_WAITS, slow.pid), LIMIT, "the try to halt")
        first.runs.free([KEY])
        take(second)
        second.lose()
    stranger.close()
    thread.join(LIMIT)
    assert [(found.key, found.taken, found.holder) for found in results] == [(KEY, False, second.holder)]
    assert bench.locks() == set()


def test_a_role_without_rights_is_told_the_grants(bench: PostgresBench, database: Database) -> None:
    bench.session().lose()
    database.execute("create role clerk login")
    try:
        for statement in migrations.grants("", "clerk").split(";"):
            if statement.strip():
                database.execute(statement)
        database.execute("revoke insert, delete on highlander_run from clerk")
        session = bench.session("n2", user="clerk")
        with pytest.raises(SchemaError, match="lacks insert on highlander_run, delete on highlander_run") as caught:
            session.runs.register(identity("n2"))
        assert "highlander_runner, highlander_run, highlander_waiting to" in caught.value.hint
        database.execute("grant insert, delete on highlander_run to clerk")
        session.runs.register(identity("n2"))
        assert take(session).taken
        session.lose()
    finally:
        database.execute("drop owned by clerk")
        database.execute("drop role clerk")


class FragileBench(PostgresBench):
    """The tables in a server of their own."""

    def __init__(self, primary: Postgres, driver: str) -> None:
        super().__init__(primary.create_database("runs"), driver)
        self._primary = primary
        self._standby: Any = None

    def restart(self) -> None:
        self._primary.restart()

    def crash(self) -> None:
        self._primary.restart("immediate")

    def promote(self) -> None:
        standby = self._standby = self._primary.standby()
        standby.wait_for_replay()
        self._primary.stop("immediate")
        standby.promote()
        self.database = type(self.database)(standby, self.database.name)

    def close(self) -> None:
        super().close()
        if self._standby is not None:
            self._standby.close()


class TestDisastersOfPostgres(DisasterContract):
    """The contract, with a server for each test."""

    @pytest.fixture
    def bench(self, server: Postgres) -> Iterator[FragileBench]:
        with Postgres(installation=server.installation) as primary:
            made = FragileBench(primary, "psycopg")
            yield made
            made.close()
