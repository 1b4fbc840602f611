"""The keeper's questions to the tick ledger: batched, never lost, and on a connection that matters to nothing else."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psycopg2
import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from celery_highlander.keeper import ledger as ledger_module
from celery_highlander.keeper.ledger import RunLedger
from celery_highlander.store import connecting, migrations
from celery_highlander.store.connecting import Target
from celery_highlander.store.ticks import claim_runs
from tests.arena.waiting import wait_until
from tests.contract.desks import plan

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.arena.servers import Database

pytestmark = pytest.mark.postgres

LIMIT = 20.0
_SESSIONS = "select pid from pg_stat_activity where application_name like 'highlander-ledger %'"


class Asker:
    """A ledger, and the answers that it gave."""

    def __init__(self, url: str) -> None:
        self.answers: dict[tuple[str, str], bool] = {}
        self.batches: list[int] = []
        self.ledger = RunLedger(plan(url), self._tell)

    def _tell(self, runs: list[tuple[str, str, bool]]) -> None:
        self.batches.append(len(runs))
        self.answers.update({(tick, copy): may_run for tick, copy, may_run in runs})

    def answered(self, copies: Iterable[tuple[str, str]]) -> list[bool]:
        """Wait for the answers."""
        copies = list(copies)
        wait_until(lambda: set(copies) <= set(self.answers), LIMIT, f"{len(copies)} answers")
        return [self.answers[copy] for copy in copies]


@pytest.fixture
def asker(url: str, database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asker]:
    monkeypatch.setattr(ledger_module, "IDLE_DURATION", 0.3)
    with create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect() as connection:
        migrations.migrate(connection, "")
    yield Asker(url)
    wait_until(lambda: not database.execute(_SESSIONS), LIMIT, "the idle connection to be closed")


def new_copies(database: Database, count: int) -> list[tuple[str, str]]:
    ticks = [str(uuid.uuid4()) for _ in range(count)]
    sql = "insert into highlander_tick (id, key, entry, due_at, token) select unnest(%s::uuid[]), 1, 'a', now(), 1"
    database.execute(sql, ticks)
    return [(tick, str(uuid.uuid4())) for tick in ticks]


def test_questions_are_answered_in_batches_over_a_connection_that_is_closed_when_idle(
    asker: Asker, database: Database
) -> None:
    first = new_copies(database, 1200)
    asker.ledger.ask(first)
    assert all(asker.answered(first))
    assert asker.batches == [500, 500, 200]
    wait_until(lambda: not database.execute(_SESSIONS), LIMIT, "the idle connection to be closed")
    second = [(tick, str(uuid.uuid4())) for tick, _ in first]
    asker.ledger.ask(second)
    assert not any(asker.answered(second))


def test_a_terminated_connection_is_opened_again_without_a_word(
    asker: Asker, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    copies = new_copies(database, 2)
    asker.ledger.ask(copies[:1])
    asker.answered(copies[:1])
    database.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name ~ '^highlander-'")
    asker.ledger.ask(copies[1:])
    assert asker.answered(copies[1:]) == [True]
    assert not caplog.records


def test_a_row_that_somebody_locks_keeps_back_no_others(
    asker: Asker, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    locked, *others = new_copies(database, 50)
    connection = psycopg2.connect(database.url(None))
    with connection.cursor() as cursor:
        cursor.execute("select from highlander_tick where id = %s for update", [locked[0]])
        asker.ledger.ask([locked, *others])
        assert all(asker.answered(others))
        assert locked not in asker.answers
    connection.close()
    assert asker.answered([locked]) == [True]
    wait_until(lambda: "can be used again" in caplog.text, LIMIT, "the word that all is well")
    assert [record.action for record in caplog.records] == ["tick_runs_wait", "tick_runs_known"]  # type: ignore[attr-defined]


def test_without_rights_every_copy_is_run_and_it_is_said_once_with_the_cure(
    asker: Asker, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    copies = new_copies(database, 2)
    database.execute("alter table highlander_tick rename to gone")
    for copy in copies:
        asker.ledger.ask([copy])
        assert asker.answered([copy]) == [True]
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "highlander migrate" in caplog.text
    assert "grant select, insert, update, delete on highlander_entry, highlander_tick" in caplog.text


@pytest.mark.usefixtures("asker")
def test_of_copies_that_many_nodes_ask_for_in_any_order_one_is_run(url: str, database: Database) -> None:
    ticks = [tick for tick, _ in new_copies(database, 400)]

    def claim(node: int) -> list[str]:
        order = ticks if node % 2 else ticks[::-1]
        copies = [(tick, str(uuid.uuid4())) for tick in order]
        with connecting.open_connection(Target(url, {}), "test") as connection:
            answers = claim_runs(connection, "", copies)
        return [tick for (tick, _), may_run in answers.items() if may_run]

    for _ in range(5):
        database.execute("update highlander_tick set run_by = null")
        with ThreadPoolExecutor(6) as pool:
            claimed = [tick for found in pool.map(claim, range(6)) for tick in found]
        assert sorted(claimed) == sorted(ticks)
