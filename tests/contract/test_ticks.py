"""The tick ledger against PostgreSQL: claimed once, by the present term alone; one copy of a message is run.

Asked directly, and as a beat does, over its keeper.
"""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from celery_highlander.beat.connection import LedgerConnection
from celery_highlander.election.keys import lock_key
from celery_highlander.errors import StaleTermError
from celery_highlander.store.ticks import Advance, Ledger, Tick, claim_runs, tick_id
from tests.contract.desks import beat_desk
from tests.contract.nodes import Node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection

    from tests.arena.servers import Database

    AnyLedger = Ledger | LedgerConnection
    Opened = Callable[[int], AnyLedger]

pytestmark = pytest.mark.postgres

NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
KEY = lock_key("shop", "ledger")


def tick(minutes: int, entry: str = "report") -> Tick:
    due_at = NOON + timedelta(minutes=minutes)
    return Tick(tick_id(KEY, entry, due_at), entry, due_at)


def advance(*ticks: Tick, skipped: int = 0) -> Advance:
    return Advance(ticks[-1].entry, ticks[-1].due_at, skipped, ticks)


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection


@pytest.fixture
def token(url: str) -> Iterator[int]:
    """Of a term that is the present one throughout the test."""
    with Node(url) as node:
        yield node.lead().token


@pytest.fixture(params=["directly", "over the keeper"])
def opened(
    request: pytest.FixtureRequest, url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Opened]:
    """Opens the ledger for the term of a token."""
    if request.param == "directly":
        yield lambda token: Ledger(connection, KEY, token, "")
        return
    with beat_desk(url, monkeypatch):
        beats: list[LedgerConnection] = []

        def over_the_keeper(token: int) -> LedgerConnection:
            beats.append(LedgerConnection(KEY, token))
            return beats[-1]

        yield over_the_keeper
        for beat in beats:
            beat.close()


@pytest.fixture
def ledger(opened: Opened, token: int) -> AnyLedger:
    return opened(token)


def test_a_tick_is_claimed_once(ledger: AnyLedger, opened: Opened, token: int) -> None:
    ledger.load({"report": NOON})
    one, two = tick(1), tick(2)
    assert ledger.claim([advance(one)]) == {one.id}
    assert opened(token).claim([advance(one, two)]) == {two.id}


def test_a_stale_term_claims_nothing_and_loads_nothing(opened: Opened, ledger: AnyLedger, token: int) -> None:
    ledger.load({"report": NOON})
    stale = opened(token - 1)
    with pytest.raises(StaleTermError):
        stale.claim([advance(tick(1))])
    with pytest.raises(StaleTermError):
        stale.load({"another": NOON})
    assert ledger.load({"report": NOON + timedelta(days=1)})["report"].last_run_at == NOON
    assert not ledger.open_ticks()


def test_what_is_not_settled_is_open_for_every_later_leader(ledger: AnyLedger) -> None:
    ledger.load({"report": NOON})
    ledger.claim([advance(tick(1), tick(2), tick(3), skipped=4)])
    ledger.settle({tick(1).id: None, tick(3).id: "cannot be serialised"})
    assert ledger.open_ticks() == [Tick(tick(2).id, "report", tick(2).due_at, attempt=2)]
    assert ledger.open_ticks()[0].attempt == 3
    ledger.settle({tick(2).id: None})
    assert ledger.open_ticks() == []
    state = ledger.load({"report": NOON})["report"]
    assert (state.last_run_at, state.run_count, state.skipped_count) == (tick(3).due_at, 3, 4)


def test_an_entry_that_was_absent_for_long_begins_anew_and_one_that_was_absent_with_all_others_does_not(
    ledger: AnyLedger, database: Database
) -> None:
    ledger.load({"report": NOON, "cleanup": NOON})
    database.execute("update highlander_entry set seen_at = seen_at - interval '3 days'")
    later = NOON + timedelta(days=3)
    assert ledger.load({"report": later})["report"].last_run_at == NOON
    assert ledger.load({"report": later, "cleanup": later})["cleanup"].last_run_at == later


def test_the_first_copy_of_a_message_is_run_however_often_it_is_delivered_and_no_other_one(
    ledger: AnyLedger, connection: Connection
) -> None:
    ledger.load({"report": NOON})
    ledger.claim([advance(tick(1))])
    first, second = (tick(1).id, str(uuid.uuid4())), (tick(1).id, str(uuid.uuid4()))
    assert claim_runs(connection, "", [first]) == {first: True}
    assert claim_runs(connection, "", [second]) == {second: False}
    assert claim_runs(connection, "", [first, second]) == {first: True, second: False}


def test_of_two_copies_at_once_one_is_run(ledger: AnyLedger, connection: Connection) -> None:
    ledger.load({"report": NOON})
    ledger.claim([advance(tick(1))])
    copies = [(tick(1).id, str(uuid.uuid4())) for _ in range(3)]
    assert sorted(claim_runs(connection, "", copies).values()) == [False, False, True]


@pytest.mark.usefixtures("ledger")
def test_a_tick_that_is_not_on_record_any_more_is_run(connection: Connection) -> None:
    unknown = (str(uuid.uuid4()), str(uuid.uuid4()))
    assert claim_runs(connection, "", [unknown]) == {unknown: True}


def test_settled_ticks_go_soon_and_those_of_several_messages_late_and_open_ones_never(
    ledger: AnyLedger, database: Database
) -> None:
    ledger.load({"report": NOON})
    ledger.claim([advance(tick(1), tick(2), tick(3), tick(4))])
    ledger.again([tick(2).id])
    ledger.settle({tick(n).id: None for n in (1, 2, 3)})
    assert ledger.prune() == 0
    database.execute(
        f"update highlander_tick set settled_at = settled_at - interval '1 hour' where id <> '{tick(3).id}'"
    )
    assert ledger.prune() == 1
    database.execute("update highlander_tick set settled_at = settled_at - interval '8 days'")
    assert ledger.prune() == 2
    assert [found.id for found in ledger.open_ticks()] == [tick(4).id]
