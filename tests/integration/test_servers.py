"""The arena's servers: what other tests lean on does what it says."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg2
import pytest
from kombu import Connection

from tests.arena import processes
from tests.arena.requirements import require
from tests.arena.servers import (
    Database,
    FilesystemBroker,
    Installation,
    PgBouncer,
    Postgres,
    RabbitMQ,
    Redis,
    Server,
    ServerError,
    installations,
)
from tests.arena.waiting import WaitedInVainError, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.postgres
LIMIT = 30.0
PARAMS: list[Installation | None] = [*installations()] or [None]


def installation_name(installation: Installation | None) -> str:
    return f"pg{installation.version}" if installation else "absent"


@pytest.fixture(scope="module", params=PARAMS, ids=installation_name)
def server(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    require(Postgres.available())
    with Postgres(installation=request.param) as postgres:
        yield postgres


def gone(*pids: int) -> bool:
    return not any(map(processes.is_alive, pids))


def test_a_database_of_its_own_for_each_test(postgres: Database) -> None:
    assert postgres.execute("select current_database(), pg_encoding_to_char(encoding) from pg_database limit 1") == [
        (postgres.name, "UTF8")
    ]
    with closing(psycopg2.connect(postgres.url(None))) as connection:
        assert connection.info.dbname == postgres.name


def test_postgres_serves_the_version_that_it_names(server: Postgres) -> None:
    assert server.execute("select current_setting('server_version_num')::int / 10000") == [(server.version,)]
    assert server.execute("select current_setting('max_connections')") == [("200",)]
    assert server.execute("select %s::text", "it's") == [("it's",)]


def test_postgres_keeps_port_and_data_when_it_restarts(server: Postgres) -> None:
    url, pid = server.url(), server.pid
    server.execute("create table kept as select 1 as number")
    server.restart()
    assert (server.url(), server.execute("select number from kept")) == (url, [(1,)])
    assert gone(pid)
    server.restart("immediate")
    assert server.execute("select number from kept") == [(1,)]


def test_postgres_that_is_stopped_refuses_connections(server: Postgres) -> None:
    server.stop()
    assert not server.is_running
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(server.url(None))
    server.stop()  # fine
    server.start()
    assert server.execute("select 1") == [(1,)]


def test_postgres_that_is_killed_takes_its_backends_along_and_recovers(server: Postgres) -> None:
    with closing(psycopg2.connect(server.url(None))) as connection:
        backend, postmaster = connection.info.backend_pid, server.pid
        assert not gone(backend)
        server.kill()
        assert gone(backend, postmaster)
        with pytest.raises(psycopg2.OperationalError), connection.cursor() as cursor:
            cursor.execute("select 1")
    server.start()
    assert server.execute("select 1") == [(1,)]


def test_postgres_that_is_paused_keeps_connections_and_answers_nobody(server: Postgres) -> None:
    with closing(psycopg2.connect(server.url(None), async_=True)) as connection:
        wait_until(lambda: connection.poll() == psycopg2.extensions.POLL_OK, LIMIT, "the connection")
        server.pause()
        cursor = connection.cursor()
        cursor.execute("select 1")
        with pytest.raises(WaitedInVainError):
            wait_until(lambda: connection.poll() == psycopg2.extensions.POLL_OK, 0.3, "an answer while paused")
        server.resume()
        wait_until(lambda: connection.poll() == psycopg2.extensions.POLL_OK, LIMIT, "the answer")
        assert cursor.fetchall() == [(1,)]


def test_sessions_are_terminated_by_application_name(server: Postgres) -> None:
    url = server.url(None, application_name="victim one")
    with closing(psycopg2.connect(url)) as victim, closing(psycopg2.connect(server.url(None))) as other:
        assert server.terminate_backends("victim%") == 1
        with pytest.raises(psycopg2.OperationalError), victim.cursor() as cursor:
            cursor.execute("select 1")
        with other.cursor() as cursor:
            cursor.execute("select 1")


def test_a_url_quotes_what_it_is_given(server: Postgres) -> None:
    server.execute("""do $$ begin create role "o'neil@x"; exception when duplicate_object then null; end $$""")
    server.execute("""alter role "o'neil@x" login""")
    url = server.url(None, user="o'neil@x", password="p/w:@#", application_name="a b&c")
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("select current_user, current_setting('application_name')")
        assert cursor.fetchone() == ("o'neil@x", "a b&c")
    assert server.url("psycopg", dbname="d", user="u", password="p") == (
        f"postgresql+psycopg://u:p@127.0.0.1:{server.port}/d"
    )


def test_clusters_share_a_system_identifier_unless_they_are_fresh(server: Postgres) -> None:
    question = "select system_identifier from pg_control_system()"
    with Postgres(installation=server.installation, fresh=True) as fresh:
        assert fresh.execute(question) != server.execute(question)


def test_a_standby_follows_and_is_promoted(server: Postgres) -> None:
    server.execute("create table followed (number int)")
    with server.standby() as standby:
        server.execute("insert into followed values (1)")
        standby.wait_for_replay()
        assert standby.execute("select number, pg_is_in_recovery() from followed") == [(1, True)]
        with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
            standby.execute("insert into followed values (2)")
        standby.promote()
        standby.execute("insert into followed values (2)")
        assert standby.execute("select count(*) from followed") == [(2,)]
        assert standby.execute("select left(pg_walfile_name(pg_current_wal_lsn()), 8)") == [("00000002",)]
        standby.restart()
        assert standby.execute("select pg_is_in_recovery()") == [(False,)]


def test_a_commit_waits_for_a_synchronous_standby_that_is_paused() -> None:
    require(Postgres.available())
    with Postgres() as primary, primary.standby(synchronous=True) as standby:
        primary.execute("create table waited (number int)")
        standby.pause()
        with closing(psycopg2.connect(primary.url(None), async_=True)) as connection:
            wait_until(lambda: connection.poll() == psycopg2.extensions.POLL_OK, LIMIT, "the connection")
            cursor = connection.cursor()  # kept: psycopg2 drops the query together with its cursor
            cursor.execute("insert into waited values (1)")
            waiting = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'"
            wait_until(lambda: primary.execute(waiting) == [(1,)], LIMIT, "the commit to wait")
            standby.resume()
            wait_until(lambda: connection.poll() == psycopg2.extensions.POLL_OK, LIMIT, "the commit")


def test_a_server_that_cannot_start_says_why_and_leaves_nothing() -> None:
    require(Postgres.available())
    server = Postgres(settings={"no_such_setting": 1})
    try:
        with pytest.raises(ServerError, match="no_such_setting"):
            server.start()
        assert not server.is_running
    finally:
        server.close()
    assert not server.directory.exists()


@pytest.mark.pgbouncer
def test_pgbouncer_in_transaction_mode_changes_the_backend_under_a_client(server: Postgres) -> None:
    require(PgBouncer.available())
    with PgBouncer(server, "transaction") as pooler, closing(psycopg2.connect(pooler.url(None))) as connection:
        with connection.cursor() as cursor:
            cursor.execute("select pg_backend_pid()")
            row = cursor.fetchone()
        assert row is not None
        assert row[0] != connection.info.backend_pid
        pooler.restart()
    with PgBouncer(server, "session") as pooler, closing(psycopg2.connect(pooler.url(None))):
        assert server.execute("select count(*) > 0 from pg_stat_activity where client_port is not null") == [(True,)]


def use_broker(url: str, **options: object) -> None:
    with Connection(url, transport_options=options) as connection, connection.SimpleQueue("trial") as messages:
        messages.put({"number": 1})
        message = messages.get(timeout=LIMIT)
        assert message.payload == {"number": 1}
        message.ack()


def stop_restart_and_kill(server: Server, url: str) -> None:
    use_broker(url)
    pid = server.pid
    server.restart()
    assert gone(pid)
    use_broker(url)
    below = [server.pid, *processes.descendants(server.pid)]
    server.pause()
    server.resume()
    use_broker(url)
    server.kill()
    assert gone(*below)


@pytest.mark.redis
def test_redis_stops_and_starts_again() -> None:
    require(Redis.available())
    with Redis() as redis:
        assert redis.command("PING") == "+PONG\r\n"
        stop_restart_and_kill(redis, redis.url())
    assert not redis.directory.exists()


@pytest.mark.slow
@pytest.mark.rabbitmq
def test_rabbitmq_stops_and_starts_again() -> None:
    require(RabbitMQ.available())
    with RabbitMQ() as rabbitmq:
        assert "/" in rabbitmq.ctl("list_vhosts").split()
        stop_restart_and_kill(rabbitmq, rabbitmq.url())
    assert not rabbitmq.directory.exists()


@pytest.mark.redis
@pytest.mark.rabbitmq
def test_session_brokers_take_messages(redis_server: Redis, rabbitmq_server: RabbitMQ) -> None:
    use_broker(redis_server.url())
    use_broker(rabbitmq_server.url())


def test_the_filesystem_broker_takes_messages(tmp_path: Path) -> None:
    conf = FilesystemBroker(tmp_path).conf()
    use_broker(conf["broker_url"], **conf["broker_transport_options"])


ORPHANS = """
import os, signal
from tests.arena.servers import Postgres, Redis, RabbitMQ
started = [Postgres().start(), Postgres().start()]
if Redis.available() is None:
    started.append(Redis().start())
if RabbitMQ.available() is None:
    started.append(RabbitMQ().start())
    print(started[-1]._epmd.pid)
for server in started:
    print(server.pid)
started[0].pause()
print(flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_no_server_outlives_a_killed_test_run_not_even_a_paused_one() -> None:
    require(Postgres.available())
    done = subprocess.run([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, check=False, text=True)
    assert done.returncode == -signal.SIGKILL
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) >= 2
    wait_until(lambda: gone(*pids), LIMIT, "all servers to end")
