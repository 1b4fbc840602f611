"""`highlander free` and `highlander sweep` with real workers: a key is freed when its run is dead, and not before."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import click
import pytest

from celery_highlander.store import run_status
from celery_highlander.store.connecting import Target
from tests.arena.servers import free_port
from tests.arena.waiting import wait_until
from tests.integration.commands import PASSWORD, invoke
from tests.integration.keyed import Holder, states

if TYPE_CHECKING:
    from tests.arena.servers import Database, Redis
    from tests.integration.keyed import KeyedCluster

pytestmark = [pytest.mark.postgres, pytest.mark.redis]
LIMIT = 60.0


# -- free --------------------------------------------------------------------------------------------------------------


def test_a_run_is_killed_and_the_next_one_gets_its_key(keyed: KeyedCluster) -> None:
    keyed.start(concurrency=2)
    keyed.post("hold", "one", 600, task_id="first")
    keyed.post("hold", "two", 600, task_id="other")
    wait_until(lambda: keyed.held() == {"first": "held", "other": "held"}, LIMIT, "both to run")
    done = keyed.free("hold(account='one')")
    assert done.returncode == 1
    assert "Did you mean 'hold(account=\"one\")'?" in done.stderr
    assert "status --tasks" in done.stderr
    done = keyed.free('hold(account="one")', "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["freed"]
    assert [(run["task_id"], run["gone"]) for run in told["runs"]] == [("first", True)]
    assert keyed.held() == {"other": "held"}
    keyed.post("hold", "one", 0.0, task_id="second")
    wait_until(lambda: keyed.app.AsyncResult("second").state == "SUCCESS", LIMIT, "the next run")
    assert keyed.app.AsyncResult("second").result == "one"
    done = keyed.free("other")
    assert (done.returncode, done.stdout) == (0, 'Freed hold(account="two"): the run of other is gone.\n')


@pytest.mark.slow
@pytest.mark.parametrize("queue", ["celery", "highlander"])
def test_the_message_of_a_run_that_was_killed_does_not_come_back(keyed: KeyedCluster, queue: str) -> None:
    keyed.start()
    keyed.post("hold_late", "one", 600, task_id="first", queue=queue)
    wait_until(lambda: keyed.held() == {"first": "held"}, LIMIT, "it to run")
    assert keyed.free("first").returncode == 0
    keyed.post("hold_late", "one", 0.0, task_id="second", queue=queue)  # behind a message that were given back
    result = keyed.app.AsyncResult("second")
    wait_until(lambda: result.state == "SUCCESS", LIMIT, "the next run")
    assert result.result == "one"
    assert keyed.app.AsyncResult("first").state == "REVOKED"
    assert keyed.held() == {}


def test_a_run_that_its_pool_cannot_kill_keeps_its_key_and_its_worker_is_named(
    keyed: KeyedCluster,
) -> None:
    keyed.pool = "threads"
    worker = keyed.start()
    keyed.post("hold", "one", 600, task_id="first")
    wait_until(lambda: keyed.held() == {"first": "held"}, LIMIT, "it to run")
    done = keyed.free("first", "--timeout", "2")
    assert done.returncode == 1
    assert "only prefork can" in done.stderr
    assert f"restart {worker.name}@arena (pid {worker.pid})" in done.stderr
    assert keyed.held() == {"first": "held"}


@pytest.mark.slow
def test_the_key_of_a_dead_session_is_freed_when_its_lease_is_over_and_not_before(keyed: KeyedCluster) -> None:
    worker = keyed.start()
    keyed.post("hold", "one", 600, task_id="first")
    wait_until(lambda: keyed.held() == {"first": "held"}, LIMIT, "it to run")
    worker.send(signal.SIGSTOP)  # so that nobody says that the run has ended: no keeper, old or new
    os.kill(worker.keeper, signal.SIGKILL)
    worker.close()
    wait_until(lambda: keyed.held() == {"first": "owed"}, LIMIT, "its session to be dead")
    done = keyed.free("first", "--timeout", "1")
    assert done.returncode == 1
    assert "the key is free in 3.0 s at most" in done.stderr
    assert "wait until its lease of 3 s is over" in done.stderr
    assert keyed.held() == {"first": "owed"}
    done = keyed.free("first")
    assert done.returncode == 0, done.stderr
    assert not keyed.held()


def test_a_session_that_was_heard_of_after_all_is_not_paid_for(postgres: Database) -> None:
    url = postgres.url(password=PASSWORD)
    with Holder(url) as dead, Holder(url, "n2") as other:
        assert dead.take(10, "shop.sync(1)", "first")
        dead.lose()
        wait_until(lambda: states(url) == {"first": "owed"}, LIMIT, "its session to be dead")
        (owed,) = run_status.read(Target(url, {}), "shop", "").runs
        postgres.execute("update highlander_runner set heartbeats = heartbeats + 1 where holder = %s", owed.holder)
        assert not run_status.pay(other.connection, "", owed)
        (owed,) = run_status.read(Target(url, {}), "shop", "").runs
        with Holder(url, "n3") as third:
            third.connection.exec_driver_sql("select pg_advisory_lock(10)")
            assert not run_status.pay(other.connection, "", owed)
        wait_until(lambda: run_status.pay(other.connection, "", owed), LIMIT, "it to be paid")
        assert states(url) == {}
        assert other.take(10, "shop.sync(1)", "second")


@pytest.mark.slow
def test_the_place_of_a_message_that_waits_is_freed(keyed: KeyedCluster) -> None:
    with Holder(keyed.url) as holder:
        holder.send(12, "shop.sync(3)", "third")
        done = keyed.free("shop.sync(3)")
        assert (done.returncode, done.stdout) == (
            0,
            "Freed the place of the message third: another one may be sent.\n",
        )
        assert not run_status.read(Target(keyed.url, {}), "shop", "").waiting


def test_nothing_is_done_where_the_person_at_the_terminal_says_no(
    postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = {"highlander_url": postgres.url(password=PASSWORD)}
    with Holder(conf["highlander_url"]) as holder:
        holder.send(12, "shop.sync(3)", "third")
        answers = [False, True]
        monkeypatch.setattr(click, "confirm", lambda *_, **__: answers.pop(0))
        at_terminal(monkeypatch)
        done = invoke(["free", "third"], conf)
        assert done.exit_code == 1
        assert "Nothing was done." in done.stderr
        assert "shop.sync(3)" in done.stderr
        assert invoke(["free", "third", "--yes", "--timeout", "0"], conf).exit_code == 2
        assert answers == [True]
        assert invoke(["free", "third"], conf).exit_code == 0


def at_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the command believe that a person is there; click replaces the streams themselves."""

    class Sys:
        stdin = type("Terminal", (), {"isatty": lambda _: True})()

        def __getattr__(self, name: str) -> Any:
            return getattr(sys, name)

    monkeypatch.setattr("celery_highlander.cli.commands.sys", Sys())


def test_without_the_broker_nothing_is_freed(postgres: Database) -> None:
    conf = {"highlander_url": postgres.url(password=PASSWORD), "broker_url": f"redis://127.0.0.1:{free_port()}"}
    with Holder(conf["highlander_url"]) as holder:
        assert holder.take(10, "shop.sync(1)", "first")
        done = invoke(["free", "first", "--json"], conf)
        assert done.exit_code == 69
        assert json.loads(done.stdout)["error"]["code"] == "broker_unavailable"
        assert states(conf["highlander_url"]) == {"first": "held"}
        assert invoke(["sweep"], conf).exit_code == 69


# -- sweep -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_message_is_gone_when_two_looks_have_missed_it(keyed: KeyedCluster, redis_server: Redis) -> None:
    keyed.conf["task_default_queue"] = "nobody"
    with Holder(keyed.url) as holder:
        holder.send(12, "shop.sync(3)", "third")
        redis_server.command("rpush", "slow", '{"headers": {"id": "other"}}')
        holder.send(13, "shop.sync(4)", "other")
        first = keyed.command("highlander", "sweep")
        assert first.returncode == 0, first.stderr
        assert "No message is gone." in first.stdout
        assert "Nowhere in this look: third. A message counts as gone after 2 looks" in first.stdout
        second = keyed.command("highlander", "sweep", "--age", "3600", "--json")
        assert json.loads(second.stdout) == {"gone": [], "missed": ["third"], "waiting": 2}
        third = keyed.command("highlander", "sweep", "--json")
        told = json.loads(third.stdout)
        assert [row["task_id"] for row in told["gone"]] == ["third"]
        assert (told["missed"], told["waiting"]) == ([], 1)
        assert "Messages that still wait: 1." in keyed.command("highlander", "sweep").stdout
