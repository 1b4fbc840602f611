"""`celery -A proj highlander status --tasks`: which runs of singleton tasks hold a key, and what waits for one."""

from __future__ import annotations

import io
import json
import sys

import pytest

from celery_highlander.cli import tasks
from celery_highlander.store import run_status
from celery_highlander.store.connecting import Target
from tests.arena.servers import Database, free_port
from tests.arena.waiting import wait_until
from tests.integration.commands import PASSWORD, invoke
from tests.integration.keyed import Holder, shown, states, status

pytestmark = pytest.mark.postgres
LIMIT = 30.0
LONG = f"shop.sync({'x' * 170})"


def test_who_holds_a_key_and_who_waits_are_shown_sorted(postgres: Database) -> None:
    url = postgres.url(password=PASSWORD)
    with Holder(url) as holder:
        assert holder.take(11, "shop.sync(2)", "second")
        assert holder.take(10, "shop.sync(1)", "first")
        holder.send(13, "shop.sync(4)", "fourth")
        holder.send(12, "shop.sync(3)", "third", lives=3600)
        found = shown(url)
        assert found["namespace"] == "shop"
        assert [run["task_id"] for run in found["runs"]] == ["first", "second"]
        (run, _), (message, forever) = found["runs"], found["waiting"]
        assert (run["key"], run["task"], run["state"]) == ("shop.sync(1)", "shop.sync", "held")
        assert (run["worker"], run["pid"]) == ("n1@arena", 4711)
        assert 0 <= run["age"] < LIMIT
        assert "T" in run["since"]
        assert (message["key"], message["task_id"], message["queue"]) == ("shop.sync(3)", "third", "slow")
        assert 3500 < message["expires_in"] <= 3600
        assert (forever["task_id"], forever["expires_in"], forever["missed"]) == ("fourth", None, 0)
        done = status(url)
        assert done.exit_code == 0
        for words in ("Runs that hold a key (2)", "shop.sync(1)", "first on n1@arena", "third in slow, expires in"):
            assert words in done.stdout
        assert not done.stderr


def test_nothing_is_said_so(postgres: Database) -> None:
    url = postgres.url(password=PASSWORD)
    Holder(url).lose()
    assert shown(url) == {"namespace": "shop", "runs": [], "waiting": []}
    assert status(url).stdout == "No run holds a key.\nNo message waits for a key.\n"


def test_the_key_of_a_dead_session_is_owed_also_while_others_try_for_it(postgres: Database) -> None:
    url = postgres.url(password=PASSWORD)
    with Holder(url) as dead, Holder(url, "n2") as other:
        assert dead.take(10, "shop.sync(1)", "first")
        assert other.take(11, "shop.sync(2)", "second")
        dead.lose()
        wait_until(lambda: states(url) == {"first": "owed", "second": "held"}, LIMIT, "the first to be owed")
        assert not other.take(10, "shop.sync(1)", "third")
        other.connection.exec_driver_sql("select pg_advisory_lock(10)")  # as in the middle of a try
        assert states(url) == {"first": "owed", "second": "held"}
        done = status(url)
        assert done.exit_code == 0
        assert "6 s at most" in done.stderr


def test_the_runs_of_another_namespace_are_not_shown(postgres: Database) -> None:
    url = postgres.url(password=PASSWORD)
    with Holder(url, namespace="bank") as bank:
        assert bank.take(10, "bank.sync(1)", "first")
        bank.send(11, "bank.sync(2)", "second")
        assert not shown(url)["runs"]
        assert not shown(url)["waiting"]
        found = shown(url, highlander_namespace="bank")
        assert (len(found["runs"]), len(found["waiting"])) == (1, 1)


def test_the_schema_of_the_tables_is_asked(postgres: Database) -> None:
    url = postgres.url(password=PASSWORD)
    with Holder(url, schema="elections") as holder:
        assert holder.take(10, "shop.sync(1)", "first")
        assert len(shown(url, highlander_schema="elections")["runs"]) == 1
        assert status(url).exit_code == 78


def test_a_long_key_is_cut_on_a_terminal_and_whole_elsewhere(
    postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.url(password=PASSWORD)
    with Holder(url) as holder:
        assert holder.take(10, LONG, "first")
        holder.send(11, LONG + "2", "second")
        assert shown(url)["runs"][0]["key"] == LONG
        assert LONG in status(url).stdout
        found = status_as_at_a_terminal(url, monkeypatch)
        assert LONG not in found
        assert "shop.sync(xxx" in found
        assert all(len(line) <= 80 for line in found.splitlines())


def status_as_at_a_terminal(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stdout", terminal)
    tasks.write(run_status.read(Target(url, {}), "shop", ""))
    monkeypatch.undo()
    return terminal.getvalue().replace("\x1b[32m\x1b[1m", "").replace("\x1b[1m", "").replace("\x1b[0m", "")


def test_a_role_that_may_only_read_is_enough(postgres: Database) -> None:
    with Holder(postgres.url()) as holder:
        assert holder.take(10, "shop.sync(1)", "first")
        postgres.execute("create role reader login")
        try:
            reader = postgres.url(user="reader", password=PASSWORD)
            postgres.execute("grant select on highlander_migration to reader")
            done = status(reader)
            assert done.exit_code == 78
            assert "permission denied" in done.stderr
            cure = next(line for line in done.stderr.splitlines() if line.startswith("grant select on "))
            postgres.execute(cure.replace("<role>", "reader"))
            assert states(reader) == {"first": "held"}
            done = invoke(["free", "first", "--yes"], {"highlander_url": reader})
            assert done.exit_code == 78
            assert "delete on highlander_run" in done.stderr
        finally:
            postgres.execute("drop owned by reader")
            postgres.execute("drop role reader")


def test_what_cannot_be_asked_is_a_clear_error(postgres: Database) -> None:
    url = postgres.url(password=PASSWORD)
    done = status(url)
    assert done.exit_code == 78
    assert "the tables highlander_* are missing." in done.stderr
    postgres.execute("create table highlander_migration (version integer primary key)")
    postgres.execute("insert into highlander_migration values (2)")
    done = status(url)
    assert done.exit_code == 78
    assert "singleton tasks came with version 3" in done.stderr
    with postgres.server.standby() as standby:
        done = status(standby.url(password=PASSWORD, dbname=postgres.name))
        assert done.exit_code == 78
        assert "hot standby" in done.stderr
    nowhere = f"postgresql+psycopg2://app:{PASSWORD}@127.0.0.1:{free_port()}/shop"
    assert status(nowhere).exit_code == 69
    assert json.loads(status(nowhere, "--json").stdout)["error"]["code"] == "database_unavailable"
