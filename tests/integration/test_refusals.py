"""What a worker cannot work with: it says so once, with the cure, without a traceback and without a password."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.arena.cluster import Cluster, Worker
from tests.arena.requirements import require
from tests.arena.servers import Database, FilesystemBroker, PgBouncer, Postgres
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.postgres
LIMIT = 60.0
EX_CONFIG = 78
PASSWORD = "s3cret"  # in every URL: a server that trusts its clients ignores it


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Makes a cluster on a database's URL."""
    broker = FilesystemBroker(tmp_path / "broker").conf()
    with contextlib.ExitStack() as stack:

        def make(url: str, **conf: Any) -> Cluster:
            return stack.enter_context(Cluster(url, broker, tmp_path, conf))

        yield make


def command_lines() -> str:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return "\n".join(found)


def assert_discreet(worker: Worker) -> None:
    assert "Traceback" not in worker.log
    assert PASSWORD not in worker.log
    assert PASSWORD not in command_lines()


def refusal(worker: Worker) -> str:
    """Wait until `worker` gave up with exit code 78; what it said."""
    assert worker.wait(LIMIT) == EX_CONFIG, worker.log
    assert_discreet(worker)
    (line,) = error_lines(worker)
    assert "CRITICAL/MainProcess] celery-highlander cannot work: " in line
    return worker.log.partition("celery-highlander cannot work: ")[2].strip()


def error_lines(worker: Worker) -> list[str]:
    return [line for line in worker.log.splitlines() if "ERROR" in line or "CRITICAL" in line]


# -- the database ------------------------------------------------------------------------------------------------------


@pytest.mark.pgbouncer
@pytest.mark.parametrize("mode", ["transaction", "session"])
@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_a_pooler_is_refused_with_its_cure(
    postgres: Database, cluster: Callable[..., Cluster], mode: Any, driver: str
) -> None:
    require(PgBouncer.available())
    with PgBouncer(postgres.server, mode) as pooler:
        url = pooler.url(driver, dbname=postgres.name, password=PASSWORD)
        said = refusal(cluster(url).start("-X", "highlander"))
    assert "connection pooler" in said
    assert "Point highlander_url at PostgreSQL itself (its own port, not the pooler's)" in said


def test_a_hot_standby_is_refused_with_its_cure(cluster: Callable[..., Cluster]) -> None:
    require(Postgres.available())
    with Postgres() as primary, primary.standby() as standby:
        said = refusal(cluster(standby.url(password=PASSWORD)).start("-X", "highlander"))
    assert "hot standby" in said
    assert "Point highlander_url at the primary" in said


@pytest.fixture
def clerk(postgres: Database) -> Iterator[str]:
    """A role that may not create tables."""
    postgres.execute("revoke create on schema public from public")
    postgres.execute("create role clerk login")
    yield "clerk"
    postgres.execute("drop owned by clerk")
    postgres.execute("drop role clerk")


def test_a_role_without_rights_is_told_the_sql(postgres: Database, clerk: str, cluster: Callable[..., Cluster]) -> None:
    workers = cluster(postgres.url(user=clerk, password=PASSWORD))
    said = refusal(workers.start("-X", "highlander"))
    assert "may not use or create the tables highlander_*: permission denied" in said
    assert "grant select, insert, update on highlander_singleton, highlander_term, highlander_node, " in said
    postgres.execute(str(workers.command("highlander", "migrate", "--sql").stdout))
    postgres.execute(
        "grant select, insert, update, delete on "
        "highlander_singleton, highlander_term, highlander_node, highlander_order to clerk"
    )
    postgres.execute("grant select on highlander_migration to clerk")
    workers.start("-X", "highlander")
    wait_until(lambda: "highlander" in Cluster.acting(workers), LIMIT, "the worker to lead once it may")


def test_missing_tables_are_refused_where_nobody_may_migrate(
    postgres: Database, cluster: Callable[..., Cluster]
) -> None:
    said = refusal(cluster(postgres.url(password=PASSWORD), highlander_migrate=False).start())
    assert "the tables highlander_* are missing, and highlander_migrate is False" in said
    assert "celery -A proj highlander migrate" in said


# -- a database that is not there yet ----------------------------------------------------------------------------------


def test_a_worker_waits_for_a_database_that_is_unreachable(cluster: Callable[..., Cluster]) -> None:
    require(Postgres.available())
    server = Postgres()
    try:
        workers = cluster(server.url(password=PASSWORD))
        worker = workers.start("-X", "highlander")
        wait_until(lambda: " ready." in worker.log, LIMIT, "the worker to be ready without a database")
        (line,) = error_lines(worker)
        assert "cannot connect to postgresql+psycopg2://postgres:***@127.0.0.1" in line
        assert "Connection refused" in line
        server.start()
        workers.leader("highlander")
        assert worker.is_running
        assert_discreet(worker)
    finally:
        worker.close()
        server.close()


def test_an_error_that_lasts_is_told_once_and_not_at_each_try(cluster: Callable[..., Cluster]) -> None:
    tries: list[int] = []

    def hang_up(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                listener.accept()[0].close()
                tries.append(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=hang_up, args=(listener,), daemon=True).start()
        url = f"postgresql+psycopg2://app:{PASSWORD}@127.0.0.1:{listener.getsockname()[1]}/shop"
        worker = cluster(url).start("-X", "highlander")
        wait_until(lambda: len(tries) >= 6, LIMIT, "the sixth try")
        wait_until(lambda: " ready." in worker.log, LIMIT, "the worker to be ready")
        assert len(error_lines(worker)) == 1
        assert_discreet(worker)
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.slow
def test_a_wrong_password_keeps_the_worker_up_and_is_shown_nowhere(
    guarded: Postgres, cluster: Callable[..., Cluster]
) -> None:
    workers = cluster(guarded.url(user="clerk", password=PASSWORD))
    worker = workers.start("-X", "highlander", "-l", "DEBUG")
    wait_until(lambda: " ready." in worker.log, LIMIT, "the worker to be ready")
    (line,) = error_lines(worker)
    assert "password authentication failed" in line
    assert "Check user and password" in line
    assert worker.is_running
    assert_discreet(worker)
    report = workers.command("report")
    assert "highlander_url: '********'" in report.stdout
    for words in (["highlander", "status"], ["highlander", "doctor"], ["highlander", "migrate"], ["report"]):
        done = workers.command(*words)
        assert PASSWORD not in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr


@pytest.fixture
def guarded() -> Iterator[Postgres]:
    """A server that asks the role `clerk` for a password."""
    require(Postgres.available())
    with Postgres() as server:
        server.execute("create role clerk login password 'another'")
        hba = server.data / "pg_hba.conf"
        hba.write_text("host all clerk 0.0.0.0/0 scram-sha-256\n" + hba.read_text())
        server.restart()
        yield server


# -- the settings ------------------------------------------------------------------------------------------------------

URL = f"postgresql+psycopg2://app:{PASSWORD}@127.0.0.1:1/shop"


@pytest.mark.parametrize(
    ("conf", "patterns"),
    [
        ({"highlander_lease_duraton": 5}, ["'highlander_lease_duraton': did you mean 'highlander_lease_duration'"]),
        (
            {
                "highlander_lease_duration": 2.0,
                "highlander_kill_margin": 0.01,
                "highlander_worker_timeout": 0.1,
                "highlander_colour": "blue",
            },
            [
                "4 settings do not fit",
                "lease_duration = 2 is too short",
                "kill_margin = 0.01",
                "worker_timeout = 0.1",
                "colour",
            ],
        ),
        (
            {"highlander_poll_interval": "soon", "highlander_priority": 5000, "highlander_queues": "ledger"},
            ["3 settings do not fit", "poll_interval = 'soon'", "priority = 5000", r"queues = 'ledger'.*\['ledger'\]"],
        ),
        ({"highlander_url": f"app:{PASSWORD}@db/shop"}, ["highlander_url has no '://'"]),
        ({"highlander_url": f"postgresql+psycopg2://app:{PASSWORD}@db:port/x"}, ["highlander_url cannot be parsed"]),
        ({"highlander_url": f"mysql://app:{PASSWORD}@db/shop"}, ["'mysql', and the lock is a PostgreSQL one"]),
        ({"highlander_url": f"postgres://app:{PASSWORD}@db/shop"}, ["write 'postgresql://'"]),
        (
            {"highlander_url": f"postgresql+asyncpg://app:{PASSWORD}@db/shop"},
            ["'asyncpg'; use one of psycopg2, psycopg"],
        ),
        ({"highlander_url": ""}, ["highlander_url is not set"]),
        (
            {"highlander_queues": ["ledger"], "highlander_processes": {"ledger": "shop:feed"}},
            ["'ledger' is in highlander_queues and in highlander_processes; names are unique"],
        ),
        ({"highlander_engine": "no.such:engine", "highlander_url": ""}, ["'no.such:engine' cannot be imported"]),
    ],
    ids=lambda value: None if isinstance(value, list) else "+".join(value),
)
def test_settings_that_cannot_work_are_refused_all_at_once(
    cluster: Callable[..., Cluster], conf: dict[str, Any], patterns: list[str]
) -> None:
    said = refusal(cluster(URL, **conf).start("-X", "highlander"))
    for pattern in patterns:
        assert re.search(pattern, said), said


def test_two_singletons_of_one_name_in_the_code_are_refused(cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    (tmp_path / "twice.py").write_text(
        "from tests.arena.shop import app, highlander\n"
        "highlander.queue('ledger')\nhighlander.queue('ledger')\n"
        "highlander.process('shop:one', name='ledger')\nhighlander.process('shop:one', name='feed')\n"
        "highlander.process('shop:two', name='feed')\n"
    )
    workers = cluster(URL)
    worker = workers.start("-X", "highlander", conf={"imports": ["twice"]}, env={"PYTHONPATH": f"{tmp_path}:."})
    said = refusal(worker)
    assert "2 settings do not fit" in said
    assert "two singletons of the name 'ledger'" in said
    assert "two singletons of the name 'feed'" in said


def test_a_singleton_queue_in_the_workers_own_list_is_refused(cluster: Callable[..., Cluster]) -> None:
    said = refusal(cluster(URL).start("-Q", "celery,highlander"))
    assert "-Q lists 'highlander', which only the leader consumes" in said
    assert "Leave singleton queues out of -Q" in said


def test_a_priority_out_of_range_is_a_usage_error(cluster: Callable[..., Cluster]) -> None:
    worker = cluster(URL).start("--highlander-priority", "5000")
    assert worker.wait(LIMIT) == 2
    assert "5000 is not in the range -999<=x<=999" in worker.log
    assert_discreet(worker)
