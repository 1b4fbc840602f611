"""`celery -A proj highlander doctor` and `migrate`: what is wrong is named with its cure, and can be cured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, _state
from sqlalchemy import create_engine, text

from celery_highlander import SingletonTask
from celery_highlander.election.keys import lock_key
from celery_highlander.store import migrations
from tests.arena.requirements import require
from tests.arena.servers import Database, PgBouncer, Postgres, free_port
from tests.contract.nodes import Node
from tests.integration.commands import PASSWORD, invoke

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.postgres


def doctor(url: str, app: Celery | None = None, **conf: Any) -> dict[str, dict[str, str]]:
    """The checks by name; the exit code fits to them."""
    done = invoke(["doctor", "--json"], {"highlander_url": url, "task_acks_late": True, **conf}, app)
    report = json.loads(done.stdout)
    checks = {check["check"]: check for check in report["checks"]}
    has_error = any(check["level"] == "error" for check in checks.values())
    assert done.exit_code == (1 if has_error else 0)
    assert report["ok"] is not has_error
    assert all(check["cure"] for check in checks.values() if check["level"] != "ok")
    return checks


def levels(checks: dict[str, dict[str, str]]) -> dict[str, str]:
    """What is not ok."""
    return {name: check["level"] for name, check in checks.items() if check["level"] != "ok"}


@pytest.fixture(autouse=True)
def _no_tasks_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared tasks are in every app of the process."""
    monkeypatch.setattr(_state, "_on_app_finalizers", set())


@pytest.fixture
def clerk(postgres: Database) -> Iterator[str]:
    """A role that may not create tables."""
    postgres.execute("revoke create on schema public from public")
    postgres.execute("create role clerk login")
    yield "clerk"
    postgres.execute("drop owned by clerk")
    postgres.execute("drop role clerk")


# -- doctor ------------------------------------------------------------------------------------------------------------


def test_a_healthy_installation_has_nothing_to_complain_of(postgres: Database) -> None:
    url = postgres.url(password=PASSWORD)
    before = doctor(url)
    assert levels(before) == {}
    assert "the first worker that starts creates them" in before["tables"]["message"]
    assert postgres.execute("select to_regclass('highlander_singleton')") == [(None,)]  # it changed nothing
    invoke(["migrate"], {"highlander_url": url})
    after = doctor(url)
    assert levels(after) == {}
    assert set(after) >= {
        *("settings", "queues", "acknowledgement", "redis", "pool", "connection", "server version", "pooler"),
        *("standby", "tables", "rights", "session settings", "lock keys", "clock", "connections"),
    }


def test_the_report_is_readable(postgres: Database) -> None:
    done = invoke(["doctor"], {"highlander_url": postgres.url(password=PASSWORD)})
    assert done.exit_code == 0
    assert "ok      server version: PostgreSQL " in done.stdout
    assert "warning acknowledgement: tasks are acknowledged before they run" in done.stdout
    assert "          Give the tasks of singleton queues acks_late=True" in done.stdout
    assert "0 errors, 1 warnings." in done.stdout


@pytest.mark.pgbouncer
@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_a_pooler_is_an_error(postgres: Database, mode: Any) -> None:
    require(PgBouncer.available())
    with PgBouncer(postgres.server, mode) as pooler:
        checks = doctor(pooler.url(dbname=postgres.name, password=PASSWORD))
    assert levels(checks) == {"pooler": "error"}
    assert "its own port" in checks["pooler"]["cure"]


def test_a_hot_standby_is_an_error(postgres: Database) -> None:
    with postgres.server.standby() as standby:
        checks = doctor(standby.url(password=PASSWORD))
    assert levels(checks)["standby"] == "error"
    assert "primary" in checks["standby"]["cure"]


def test_an_unreachable_database_is_an_error() -> None:
    checks = doctor(f"postgresql+psycopg2://app:{PASSWORD}@127.0.0.1:{free_port()}/shop")
    assert levels(checks) == {"connection": "error"}
    assert "Connection refused" in checks["connection"]["message"]


def test_settings_that_do_not_fit_are_an_error(postgres: Database) -> None:
    checks = doctor(postgres.url(password=PASSWORD), highlander_lease_duration=1.0, highlander_colour="blue")
    assert levels(checks) == {"settings": "error"}
    assert "2 settings do not fit" in checks["settings"]["message"]


def test_missing_tables_are_an_error_for_a_role_that_may_not_create_them(postgres: Database, clerk: str) -> None:
    checks = doctor(postgres.url(user=clerk, password=PASSWORD))
    assert levels(checks) == {"tables": "error"}
    assert "'clerk' may not create them" in checks["tables"]["message"]
    assert "--sql" in checks["tables"]["cure"]
    checks = doctor(postgres.url(password=PASSWORD), highlander_migrate=False)
    assert "highlander_migrate is False" in checks["tables"]["message"]


def test_missing_rights_are_an_error_that_the_printed_sql_cures(postgres: Database, clerk: str) -> None:
    invoke(["migrate"], {"highlander_url": postgres.url(password=PASSWORD)})
    postgres.execute("grant select on highlander_migration to clerk")
    url = postgres.url(user=clerk, password=PASSWORD)
    checks = doctor(url)
    unused = {"rights of the beat": "warning", "rights of singleton tasks": "warning"}
    assert levels(checks) == {"rights": "error", **unused}
    assert "select on highlander_singleton" in checks["rights"]["message"]
    postgres.execute(
        "grant select, insert, update, delete on "
        "highlander_singleton, highlander_term, highlander_node, highlander_order to clerk"
    )
    checks = doctor(url)
    assert levels(checks) == unused
    assert "select on highlander_entry" in checks["rights of the beat"]["message"]
    assert "delete on highlander_waiting" in checks["rights of singleton tasks"]["message"]
    postgres.execute(checks["rights of the beat"]["cure"])
    assert levels(doctor(url)) == {}


def test_missing_rights_of_a_part_that_is_in_use_are_an_error(postgres: Database, clerk: str) -> None:
    invoke(["migrate"], {"highlander_url": postgres.url(password=PASSWORD)})
    postgres.execute("grant select on highlander_migration to clerk")
    postgres.execute(
        "grant select, insert, update, delete on "
        "highlander_singleton, highlander_term, highlander_node, highlander_order to clerk"
    )
    url = postgres.url(user=clerk, password=PASSWORD)
    beat, runs = "rights of the beat", "rights of singleton tasks"
    assert levels(doctor(url, highlander_beat=True)) == {beat: "error", runs: "warning"}
    assert levels(doctor(url, beat_scheduler="highlander")) == {beat: "error", runs: "warning"}
    books_of_its_own = {"highlander_beat": True, "highlander_beat_scheduler": "celery.beat:PersistentScheduler"}
    assert levels(doctor(url, **books_of_its_own)) == {beat: "warning", runs: "warning"}

    app = Celery("shop", set_as_current=False)

    def nothing() -> None: ...

    app.task(name="shop.nothing", base=SingletonTask, acks_late=True, shared=False)(nothing)
    checks = doctor(url, app)
    assert levels(checks) == {beat: "warning", runs: "error"}
    postgres.execute(checks[runs]["cure"])
    checks = doctor(url, app)
    assert levels(checks) == {}
    assert "may read and write" in checks[runs]["message"]


def test_a_lock_key_that_belongs_to_another_singleton_is_an_error(postgres: Database) -> None:
    url = postgres.url()
    invoke(["migrate"], {"highlander_url": url})
    key = lock_key("shop", "highlander")
    postgres.execute(
        "insert into highlander_singleton (key, namespace, name, token, heartbeats, owed, instance)"
        f" values ({key}, 'other', 'prices', 1, 0, 0, '')"
    )
    found = doctor(url)
    assert levels(found) == {"lock keys": "error"}
    assert "'highlander' has the lock key of 'prices' in the namespace 'other'" in found["lock keys"]["message"]


def test_a_lock_that_another_program_holds_is_an_error(postgres: Database) -> None:
    url = postgres.url()
    assert levels(doctor(url)) == {}
    key = lock_key("shop", "highlander")
    with create_engine(url, connect_args={"application_name": "nightly"}).connect() as connection:
        connection.execute(text(f"select pg_advisory_lock({key})"))
        found = doctor(url)
    assert levels(found) == {"lock keys": "error"}
    assert "held by another program, 'nightly', backend" in found["lock keys"]["message"]


def test_few_free_connections_are_a_warning() -> None:
    require(Postgres.available())
    with Postgres(settings={"max_connections": 8, "max_wal_senders": 2, "superuser_reserved_connections": 3}) as server:
        checks = doctor(server.url(password=PASSWORD))
    assert levels(checks) == {"connections": "warning"}
    assert "max_connections" in checks["connections"]["cure"]


@pytest.mark.parametrize(
    ("conf", "found"),
    [
        ({"task_acks_late": False}, {"acknowledgement": "warning"}),
        ({"task_default_queue": "highlander"}, {"queues": "warning"}),
        ({"broker_url": "amqp://127.0.0.1:1"}, {"amqp": "warning"}),
        (
            {"broker_url": "amqp://127.0.0.1:1", "worker_cancel_long_running_tasks_on_connection_loss": True},
            {},
        ),
        ({"broker_url": "memory://"}, {"broker": "warning"}),
        ({"broker_url": "filesystem://"}, {"broker": "warning"}),
        ({"worker_pool": "gevent"}, {"pool": "warning"}),
        ({"highlander_queues": []}, {"settings": "warning"}),
        ({"broker_url": "redis://127.0.0.1:1", "broker_transport_options": {"visibility_timeout": 60}}, {}),
    ],
    ids=lambda value: ",".join(map(str, value.values())) or "fine",
)
def test_settings_of_celery_that_matter_are_judged(
    postgres: Database, conf: dict[str, Any], found: dict[str, str]
) -> None:
    assert levels(doctor(postgres.url(password=PASSWORD), **conf)) == found


def test_tasks_that_are_acknowledged_early_are_named(postgres: Database) -> None:
    def nothing() -> None: ...

    app = Celery("shop", set_as_current=False)
    app.task(name="shop.pay", acks_late=True)(nothing)
    app.task(name="shop.mail", acks_late=False)(nothing)
    checks = doctor(postgres.url(password=PASSWORD), app)
    assert "(shop.mail)" in checks["acknowledgement"]["message"]


# -- migrate -----------------------------------------------------------------------------------------------------------


def test_migrate_says_from_which_version_to_which(postgres: Database) -> None:
    conf = {"highlander_url": postgres.url(password=PASSWORD), "highlander_schema": "elections"}
    version = migrations.VERSION
    assert f"Created the tables in the schema 'elections', version {version}." in invoke(["migrate"], conf).stdout
    assert f"of version {version} already: nothing to do" in invoke(["migrate"], conf).stdout
    told = json.loads(invoke(["migrate", "--json"], conf).stdout)
    assert told == {"schema": "elections", "from": version, "to": version}
    assert f"of version {version} already" in invoke(["migrate", "--sql"], conf).stdout


def test_the_printed_sql_is_all_that_is_needed(postgres: Database) -> None:
    conf = {"highlander_url": postgres.url(password=PASSWORD), "highlander_schema": "elections"}
    postgres.execute(invoke(["migrate", "--sql"], conf).stdout)
    with Node(postgres.url(), schema="elections") as node:
        node.lead()


def test_the_sql_is_printed_without_a_database_too() -> None:
    url = f"postgresql+psycopg2://app:{PASSWORD}@127.0.0.1:{free_port()}/shop"
    done = invoke(["migrate", "--sql"], {"highlander_url": url})
    assert done.exit_code == 0
    assert "create table highlander_singleton" in done.stdout


def test_a_role_that_may_not_migrate_is_told_the_sql(postgres: Database, clerk: str) -> None:
    conf = {"highlander_url": postgres.url(user=clerk, password=PASSWORD)}
    done = invoke(["migrate"], conf)
    assert done.exit_code == 78
    assert "permission denied" in done.stderr
    assert "create table highlander_singleton" in done.stderr
    assert json.loads(invoke(["migrate", "--json"], conf).stdout)["error"]["code"] == "schema"


def test_migrating_a_hot_standby_or_nothing_is_a_clear_error(postgres: Database) -> None:
    with postgres.server.standby() as standby:
        done = invoke(["migrate"], {"highlander_url": standby.url(password=PASSWORD)})
        assert done.exit_code == 78
        assert "hot standby" in done.stderr
    url = f"postgresql+psycopg2://app:{PASSWORD}@127.0.0.1:{free_port()}/shop"
    assert invoke(["migrate"], {"highlander_url": url}).exit_code == 69


# -- all of them -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["status", "doctor", "migrate", "free", "sweep"])
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    done = invoke([command, "--help"], {})
    assert f"Example: celery -A proj highlander {command}" in done.stdout
    assert "--json" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


@pytest.mark.parametrize("command", [["status"], ["doctor"], ["migrate"], ["free", "key"], ["sweep"]])
def test_a_module_that_cannot_be_imported_is_a_clear_error(postgres: Database, command: list[str]) -> None:
    done = invoke(command, {"highlander_url": postgres.url(password=PASSWORD), "imports": ["no_such_module"]})
    assert done.exit_code == 78
    assert "No module named 'no_such_module'" in done.stderr
