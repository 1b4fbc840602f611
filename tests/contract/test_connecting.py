"""Opening a lock session: what is refused, what the server does with a silent one, and what a failover changes."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from celery_highlander.election.lease import Timing
from celery_highlander.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    LockSessionError,
    PoolerError,
    ServerVersionError,
    StandbyServerError,
)
from celery_highlander.store import connecting, inspection, status
from celery_highlander.store.connecting import Target, check_server, open_connection
from tests.arena.requirements import require
from tests.arena.servers import Database, PgBouncer, Postgres, free_port
from tests.arena.waiting import wait_until
from tests.contract.nodes import LIMIT, TIMING, Node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.postgres


def connect(url: str, **arguments: Any) -> Any:
    return closing(open_connection(Target(url, arguments), "contract", TIMING))


# -- the connection ----------------------------------------------------------------------------------------------------


def test_the_server_is_known_by_its_backend_version_and_timeline(url: str, server: Postgres) -> None:
    with connect(url) as connection:
        found = check_server(connection)
        assert found.backend_pid == connection.execute(text("select pg_backend_pid()")).scalar()
        assert found.backend_pid == connection.connection.driver_connection.info.backend_pid
        assert found.version // 10000 == server.version
        assert found.timeline == 1


def test_a_session_never_idles_in_a_transaction(url: str, database: Database) -> None:
    with Node(url) as node:
        node.heartbeat({"ledger": node.lead().token}, {"ledger"})
        state = "select state, backend_xmin from pg_stat_activity where application_name = 'highlander shop n1 p0'"
        assert database.execute(state) == [("idle", None)]


def test_a_session_sets_its_own_limits(url: str) -> None:
    with Node(url, lease=6.0) as node:
        shown = {
            name: node.connection.execute(text(f"show {name}")).scalar()
            for name in ("idle_session_timeout", "statement_timeout", "lock_timeout", "synchronous_commit")
        }
        assert shown == {
            "idle_session_timeout": "6s",
            "statement_timeout": "2s",
            "lock_timeout": "200ms",
            "synchronous_commit": "on",
        }
        assert node.connection.execute(text("show client_connection_check_interval")).scalar() == "1s"


def test_the_server_drops_a_silent_session_and_frees_its_lock(url: str) -> None:
    with Node(url, lease=1.0) as silent, Node(url, node="n2") as other:
        silent.lead()
        assert not other.try_locks()
        wait_until(other.try_locks, LIMIT, "the lock of the silent session")
        with pytest.raises(DBAPIError):
            silent.heartbeat({})


def test_text_comes_as_text_from_a_server_without_an_encoding(server: Postgres, driver: str) -> None:
    server.execute("drop database if exists ascii")
    server.execute("create database ascii encoding 'SQL_ASCII' template template0")
    with Node(server.url(driver, dbname="ascii")) as node:
        node.lead()
        assert [member.node for member in node.terms.members()] == ["n1"]


def test_a_unix_socket_is_as_good_as_an_address(server: Postgres, database: Database, driver: str) -> None:
    url = f"postgresql+{driver}://postgres@/{database.name}?host={server.socket_directory}&port={server.port}"
    with Node(url) as node:
        node.heartbeat({"ledger": node.lead().token}, {"ledger"})


def test_of_several_hosts_the_primary_is_found(server: Postgres, driver: str) -> None:
    with server.standby() as standby:
        hosts = f"host=127.0.0.1:{standby.port}&host=127.0.0.1:{server.port}&target_session_attrs=read-write"
        with connect(f"postgresql+{driver}://postgres@/postgres?{hosts}") as connection:
            assert check_server(connection).timeline == 1


def test_connect_arguments_of_the_application_win(url: str) -> None:
    with connect(url.replace("postgres@", "nobody@"), user="postgres") as connection:
        assert connection.execute(text("select current_user")).scalar() == "postgres"


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.pgbouncer
@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_a_pooler_is_refused(server: Postgres, driver: str, mode: Any) -> None:
    require(PgBouncer.available())
    with PgBouncer(server, mode) as pooler, connect(pooler.url(driver)) as connection:
        with pytest.raises(PoolerError, match="pooler") as caught:
            check_server(connection)
        assert "its own port" in caught.value.hint


@pytest.mark.pgbouncer
def test_a_pooler_that_refuses_a_startup_parameter_is_named(server: Postgres, driver: str) -> None:
    require(PgBouncer.available())
    with PgBouncer(server, ignored_parameters=()) as pooler:
        with pytest.raises(PoolerError, match="unsupported startup parameter") as caught:
            open_connection(Target(pooler.url(driver), {"options": "-c work_mem=8MB"}), "contract", TIMING)
        assert "its own port" in caught.value.hint


def test_a_hot_standby_is_refused(server: Postgres, driver: str) -> None:
    with server.standby() as standby, connect(standby.url(driver)) as connection:
        with pytest.raises(StandbyServerError, match="hot standby") as caught:
            check_server(connection)
        assert "primary" in caught.value.hint


class _Answer:
    """A connection whose server says that it is of an old version."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.connection = self
        self.driver_connection = self
        self.info = self
        self.backend_pid = 1

    def execute(self, _: object) -> Any:
        return self

    def one(self) -> tuple[int, bool, int]:
        return (1, False, self.version)


def test_a_server_older_than_14_is_refused() -> None:
    connection: Any = _Answer(130012)
    with pytest.raises(ServerVersionError, match=r"PostgreSQL 13\.12; 14 or newer"):
        check_server(connection)


def test_a_server_that_is_not_there_is_unavailable(driver: str) -> None:
    url = f"postgresql+{driver}://app:s3cret@127.0.0.1:{free_port()}/shop"
    with pytest.raises(DatabaseUnavailableError) as caught:
        open_connection(Target(url, {}), "contract", TIMING)
    assert "s3cret" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


def test_a_database_that_does_not_exist_is_unavailable(server: Postgres, driver: str) -> None:
    with pytest.raises(DatabaseUnavailableError, match="does not exist") as caught:
        open_connection(Target(server.url(driver, dbname="nowhere"), {}), "contract", TIMING)
    assert "highlander_url" in caught.value.hint


@pytest.mark.parametrize("step", ["status", "inspection"])
def test_a_server_that_freezes_after_the_connection_is_unavailable(
    server: Postgres, database: Database, driver: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target(database.url(driver), {})
    with Node(database.url(driver)) as node:
        node.lead()
    connection = open_connection(target, "contract", TIMING)
    monkeypatch.setattr(connecting, "ANSWER_TIMEOUT", 0.5)
    asks: dict[str, Callable[[], object]] = {
        "status": lambda: status.read(target, "shop", "", {"ledger": 1}),
        "inspection": lambda: inspection.inspect(target, "", TIMING, "shop", {}),
    }
    monkeypatch.setattr(f"celery_highlander.store.{step}.open_connection", lambda *_: connection)
    server.pause()
    try:
        with pytest.raises(DatabaseUnavailableError, match="did not answer"):
            asks[step]()
    finally:
        server.resume()


@pytest.fixture
def guarded(server: Postgres) -> Iterator[Postgres]:
    """The server, asking the role `clerk` for its password."""
    hba = server.data / "pg_hba.conf"
    before = hba.read_text()
    server.execute("create role clerk login password 'right'")
    hba.write_text("host all clerk 0.0.0.0/0 scram-sha-256\n" + before)
    server.execute("select pg_reload_conf()")

    def asks() -> bool:
        try:
            open_connection(Target(server.url("psycopg2", user="clerk"), {}), "contract").close()
        except DatabaseUnavailableError:
            return True
        return False

    wait_until(asks, LIMIT, "the server to ask for a password")
    yield server
    hba.write_text(before)
    server.execute("select pg_reload_conf()")
    server.execute("drop role clerk")


def test_a_wrong_password_is_never_shown(guarded: Postgres, driver: str) -> None:
    password = "a%very+secret/one"
    target = Target(guarded.url(driver, user="clerk", password=password), {})
    with pytest.raises(DatabaseUnavailableError, match="password authentication failed") as caught:
        open_connection(target, "contract", TIMING)
    told = f"{caught.value} {caught.value!r} {target!r} {caught.value.__cause__} {caught.value.__suppress_context__}"
    assert "secret" not in told
    assert "user and password" in caught.value.hint


def test_a_password_among_the_arguments_is_used_and_never_shown(guarded: Postgres, driver: str) -> None:
    with connect(guarded.url(driver, user="clerk"), password="right") as connection:
        assert connection.execute(text("select current_user")).scalar() == "clerk"
    with pytest.raises(DatabaseUnavailableError) as caught:
        open_connection(Target(guarded.url(driver, user="clerk"), {"password": "wr0ng"}), "contract", TIMING)
    assert "wr0ng" not in str(caught.value)


def test_an_argument_that_the_driver_does_not_know_is_a_configuration_error_or_unavailable(url: str) -> None:
    with pytest.raises((ConfigurationError, DatabaseUnavailableError), match="colour"):
        open_connection(Target(url, {"colour": "blue"}), "contract", TIMING)


# -- failover ----------------------------------------------------------------------------------------------------------


def test_a_restarted_server_is_another_instance(server: Postgres, database: Database, driver: str) -> None:
    with Node(database.url(driver)) as node:
        token = node.lead().token
        before = node.server.instance
    server.restart()
    with Node(database.url(driver), node="n2") as node:
        assert node.server.instance != before
        begun = node.lead()
        assert begun.predecessor is not None
        assert not begun.predecessor.same_instance
        assert begun.token > token


def test_tokens_rise_over_a_promotion_that_lost_terms(server: Postgres, driver: str) -> None:
    with Postgres(installation=server.installation) as primary, primary.standby() as standby:
        with Node(primary.url(driver)) as node:
            replicated = node.lead().token
            standby.wait_for_replay()
            standby.stop()
            lost = [node.begin().token for _ in range(200)]  # ahead of the clock, and of any later sequence number
        primary.kill()
        standby.start()
        standby.promote()
        with Node(standby.url(driver), node="n2") as node:
            begun = node.lead()
            assert node.server.timeline == 2
            assert begun.predecessor is not None
            assert begun.predecessor.token == replicated
            assert not begun.predecessor.same_instance
            assert begun.token > lost[-1]
            assert begun.token >> 32 == 2


def test_a_heartbeat_to_a_primary_that_became_a_standby_is_a_loss(url: str) -> None:
    with Node(url) as node:
        token = node.lead().token
        node.terms._statements["heartbeat"] = text("select 1, pg_backend_pid(), true")  # what such a server says
        with pytest.raises(LockSessionError, match="not the primary"):
            node.heartbeat({"ledger": token}, {"ledger"})


def test_a_mark_of_before_a_failover_marks_nobody_else(url: str, database: Database) -> None:
    from celery_highlander.election.node import Mark

    with Node(url) as node:
        token = node.lead().token
        node.terms.leave_marks((Mark("ledger", (2 << 32) | token & 0xFFFFFFFF, "late"),))
        assert database.execute("select count(*) from highlander_term where stopped_at is not null") == [(0,)]


def test_the_default_driver_is_psycopg2(database: Database) -> None:
    with connect(database.url(None)) as connection:
        assert connection.dialect.driver == "psycopg2"
    assert connecting.parse_url("postgresql://db/shop").drivername == "postgresql+psycopg2"


def test_the_limits_scale_with_the_timing(url: str) -> None:
    with connect(url) as connection:
        connecting.guard_session(connection, Timing(lease=3.0, heartbeat_timeout=0.8))
        assert connection.execute(text("show idle_session_timeout")).scalar() == "3s"
        assert connection.execute(text("show statement_timeout")).scalar() == "800ms"
