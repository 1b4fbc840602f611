"""`celery -A proj highlander status`: what operators and probes see, with workers and broker up or down."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

from celery_highlander import Highlander
from celery_highlander.election.node import Mark
from tests.arena.cluster import Cluster
from tests.arena.requirements import require
from tests.arena.servers import Database, FilesystemBroker, PgBouncer, free_port
from tests.arena.waiting import wait_until
from tests.contract.nodes import Node
from tests.integration.commands import PASSWORD, invoke

if TYPE_CHECKING:
    import signal
    from pathlib import Path

pytestmark = pytest.mark.postgres
LIMIT = 60.0


def status(url: str, *words: str, **conf: Any) -> Any:
    return invoke(["status", *words], {"highlander_url": url, "highlander_queues": ["ledger"], **conf})


def shown(url: str, **conf: Any) -> dict[str, Any]:
    """The one singleton, as JSON."""
    (entry,) = json.loads(status(url, "--json", **conf).stdout)["singletons"]
    return dict(entry)


def test_a_singleton_that_is_led_is_shown_with_its_leader(postgres: Database) -> None:
    url = postgres.url(password=PASSWORD)
    with Node(url) as one, Node(url, node="n2"), Node(url, node="n3", eligible=False):
        token = one.lead().token
        one.heartbeat({"ledger": token}, {"ledger"})
        done = status(url)
        assert done.exit_code == 0
        for word in ("ledger", "leading", "n1@arena"):
            assert word in done.stdout
        for word in ("4711", str(token)):
            assert word in status(url, "--wide").stdout
        entry = shown(url)
        assert (entry["state"], entry["leader"], entry["pid"], entry["token"]) == ("leading", "n1@arena", 4711, token)
        assert entry["standbys"] == 1
        assert 0 <= entry["age"] < LIMIT
        assert 0 < entry["lease_left"] <= one.lease == entry["lease"]


def test_a_singleton_that_nobody_leads_is_a_failure_and_tells_how_the_last_term_ended(postgres: Database) -> None:
    url = postgres.url(password=PASSWORD)
    with Node(url) as one:
        token = one.lead().token
        one.heartbeat({"ledger": token}, {"ledger"})
        one.terms.release("ledger", Mark("ledger", token, "worker shutting down"))
    done = status(url)
    assert done.exit_code == 1
    assert "worker shutting down" in status(url, "--wide").stdout
    assert "Led by nobody in the namespace 'shop': ledger." in done.stderr
    entry = shown(url)
    assert (entry["state"], entry["leader"], entry["lease_left"]) == ("free", None, None)
    assert entry["last_reason"] == "worker shutting down"


def test_a_leader_that_waits_out_its_predecessor_does_not_lead_yet(postgres: Database) -> None:
    url = postgres.url(password=PASSWORD)
    with Node(url) as one:
        one.heartbeat({"ledger": one.lead().token})
        assert shown(url)["state"] == "waiting"
        assert status(url).exit_code == 1


def test_a_holder_that_is_silent_for_longer_than_its_lease_does_not_lead(postgres: Database) -> None:
    url = postgres.url(password=PASSWORD)
    with Node(url) as one:
        one.heartbeat({"ledger": one.lead().token}, {"ledger"})
        postgres.execute("update highlander_singleton set heartbeat_at = heartbeat_at - interval '1 minute'")
        entry = shown(url)
        assert (entry["state"], entry["lease_left"]) == ("silent", 0.0)
        assert status(url).exit_code == 1


def test_a_lock_whose_new_holder_has_no_term_yet_is_not_the_old_leaders(postgres: Database) -> None:
    url = postgres.url(password=PASSWORD)
    with Node(url) as one, Node(url, node="n2") as other:
        token = one.lead().token
        one.heartbeat({"ledger": token}, {"ledger"})
        one.terms.unlock(["ledger"])
        assert other.try_locks() == {"ledger"}
        entry = shown(url)
        assert (entry["state"], entry["leader"]) == ("waiting", None)


def test_the_leader_of_another_namespace_is_not_shown(postgres: Database) -> None:
    url = postgres.url(password=PASSWORD)
    with Node(url, namespace="bank") as bank:
        bank.heartbeat({"ledger": bank.lead().token}, {"ledger"})
        assert shown(url)["state"] == "free"
        assert shown(url, highlander_namespace="bank")["state"] == "leading"


def test_a_role_that_may_only_read_is_enough(postgres: Database) -> None:
    url = postgres.url(password=PASSWORD)
    with Node(url) as one:
        one.heartbeat({"ledger": one.lead().token}, {"ledger"})
        postgres.execute("create role reader login")
        try:
            postgres.execute(
                "grant select on "
                "highlander_singleton, highlander_term, highlander_order, highlander_migration to reader"
            )
            entry = shown(postgres.url(user="reader", password=PASSWORD))
            assert (entry["state"], entry["leader"]) == ("leading", "n1@arena")
            assert entry["lease_left"] > 0
            postgres.execute("revoke select on highlander_term from reader")
            done = status(postgres.url(user="reader", password=PASSWORD))
            assert done.exit_code == 78
            assert "permission denied" in done.stderr
            assert "grant select on highlander_singleton" in done.stderr
        finally:
            postgres.execute("drop owned by reader")
            postgres.execute("drop role reader")


def test_asking_changes_nothing_in_the_database(postgres: Database) -> None:
    url = postgres.url(password=PASSWORD)
    with Node(url) as one:
        one.lead()
        row = "select s.*, xmin::text from highlander_singleton s"
        before = postgres.execute(row)
        status(url)
        assert postgres.execute(row) == before
        assert postgres.execute("select count(*) from highlander_term") == [(1,)]


def test_the_schema_of_the_tables_is_asked(postgres: Database) -> None:
    url = postgres.url(password=PASSWORD)
    with Node(url, schema="elections") as one:
        one.heartbeat({"ledger": one.lead().token}, {"ledger"})
        assert shown(url, highlander_schema="elections")["state"] == "leading"
        assert status(url).exit_code == 78


def test_a_database_without_tables_is_not_set_up(postgres: Database) -> None:
    done = status(postgres.url(password=PASSWORD))
    assert done.exit_code == 78
    assert "there are no tables highlander_*" in done.stderr
    assert "highlander migrate" in done.stderr


def test_an_unreachable_database_is_exit_code_69() -> None:
    url = f"postgresql+psycopg2://app:{PASSWORD}@127.0.0.1:{free_port()}/shop"
    assert status(url).exit_code == 69
    done = status(url, "--json")
    assert done.exit_code == 69
    assert json.loads(done.stdout)["error"]["code"] == "database_unavailable"


def test_settings_that_cannot_work_are_exit_code_78(postgres: Database) -> None:
    done = status(postgres.url(password=PASSWORD), highlander_lease_duraton=3)
    assert done.exit_code == 78
    assert "did you mean 'highlander_lease_duration'" in done.stderr
    done = status(postgres.url(password=PASSWORD), "--json", highlander_lease_duraton=3)
    assert json.loads(done.stdout)["error"]["code"] == "configuration"


def test_a_hot_standby_does_not_know_who_leads(postgres: Database) -> None:
    with postgres.server.standby() as standby:
        done = status(standby.url(password=PASSWORD, dbname=postgres.name))
        assert done.exit_code == 78
        assert "hot standby" in done.stderr


@pytest.mark.pgbouncer
def test_the_status_can_be_read_through_a_pooler_and_leaves_nothing_on_its_sessions(postgres: Database) -> None:
    require(PgBouncer.available())
    with Node(postgres.url()) as one, PgBouncer(postgres.server, pool_size=1) as pooler:
        one.heartbeat({"ledger": one.lead().token}, {"ledger"})
        for _ in range(2):
            assert shown(pooler.url(dbname=postgres.name, password=PASSWORD))["state"] == "leading"


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_the_status_works_with_either_driver(postgres: Database, driver: str) -> None:
    with Node(postgres.url()) as one:
        one.heartbeat({"ledger": one.lead().token}, {"ledger"})
        assert shown(postgres.url(driver, password=PASSWORD))["state"] == "leading"


def test_an_application_asks_who_leads(postgres: Database) -> None:
    app = Celery("shop", set_as_current=False)
    app.conf.update(highlander_url=postgres.url(), highlander_queues=["ledger"])
    highlander = Highlander(app)
    with Node(postgres.url()) as one:
        token = one.lead().token
        assert highlander.whereis("ledger") is None  # it waits
        one.heartbeat({"ledger": token}, {"ledger"})
        assert highlander.whereis("ledger") == "n1@arena"
        assert highlander.whereis("another") is None
        one.terms.release("ledger", Mark("ledger", token, ""))
        assert highlander.whereis("ledger") is None


@pytest.mark.slow
def test_the_command_follows_real_workers_and_works_when_they_are_gone(postgres: Database, tmp_path: Path) -> None:
    import signal as signals

    broker = FilesystemBroker(tmp_path / "broker").conf()
    with Cluster(postgres.url(password=PASSWORD), broker, tmp_path) as cluster:
        cluster.start()
        cluster.start()
        leader = cluster.leader("highlander")

        def both() -> dict[str, Any] | None:
            entry = json.loads(cluster.command("highlander", "status", "--json").stdout)["singletons"][0]
            return dict(entry) if entry["standbys"] == 1 else None

        entry = wait_until(both, LIMIT, "the standby to be counted")
        assert entry is not None
        assert (entry["leader"], entry["pid"]) == (f"{leader.name}@arena", leader.pid)
        stop: signal.Signals = signals.SIGTERM
        for worker in cluster.workers:
            worker.send(stop)
        for worker in cluster.workers:
            worker.wait(LIMIT)
        cluster.conf["broker_url"] = f"redis://127.0.0.1:{free_port()}"
        done = cluster.command("highlander", "status", "--wide")
        assert done.returncode == 1
        assert "free" in done.stdout
        assert "worker shutting down" in done.stdout
        assert "Traceback" not in done.stderr
        assert PASSWORD not in done.stdout + done.stderr
