"""Fencing: a stale term cannot write, a fenced transaction holds back the next term, and nobody else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from celery_highlander.election.protocol import BeginFailed, Begun
from celery_highlander.errors import StaleTermError
from celery_highlander.store import fencing
from celery_highlander.store.fencing import fence
from tests.arena.waiting import wait_until
from tests.contract.nodes import LIMIT, Node

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from tests.arena.servers import Database

pytestmark = pytest.mark.postgres


@pytest.fixture
def caller(url: str) -> Iterator[Connection]:
    """The application's own connection, with a transaction."""
    with create_engine(url, poolclass=NullPool).connect() as connection:
        yield connection


def test_the_current_term_may_write(url: str, caller: Connection, database: Database) -> None:
    database.execute("create table ledger (entry int)")
    with Node(url) as node:
        token = node.lead().token
        with caller.begin():
            fence(caller, "shop", "ledger", token)
            caller.execute(text("insert into ledger values (1)"))
    assert database.execute("select entry from ledger") == [(1,)]


@pytest.mark.parametrize("offset", [-1, 1])
def test_a_token_that_is_not_the_current_one_is_stale(url: str, caller: Connection, offset: int) -> None:
    with Node(url) as node:
        token = node.lead().token
        with pytest.raises(StaleTermError, match="'ledger'"), caller.begin():
            fence(caller, "shop", "ledger", token + offset)


def test_a_singleton_that_never_had_a_term_is_stale(url: str, caller: Connection) -> None:
    with Node(url) as node, pytest.raises(StaleTermError), caller.begin():
        fence(caller, "shop", "another", node.server.timeline << 32)


def test_the_term_of_another_namespace_is_stale(url: str, caller: Connection) -> None:
    with Node(url) as node:
        token = node.lead().token
        with pytest.raises(StaleTermError), caller.begin():
            fence(caller, "bank", "ledger", token)


def test_a_fence_holds_in_the_schema_of_the_tables(url: str, caller: Connection) -> None:
    with Node(url, schema="highlander") as node:
        token = node.lead().token
        with caller.begin():
            fence(caller, "shop", "ledger", token, schema="highlander")


def test_a_fence_blocks_the_next_term_until_its_transaction_ends(url: str, caller: Connection) -> None:
    with Node(url) as one, Node(url, node="n2") as other:
        token = one.lead().token
        one.terms.release("ledger", None)
        assert other.try_locks() == {"ledger"}
        with caller.begin():
            fence(caller, "shop", "ledger", token)
            assert isinstance(other.terms.begin(["ledger"], other.who, 0.0)["ledger"], BeginFailed)
        assert other.begin().token > token


def test_a_fenced_row_fails_its_own_singleton_alone(url: str, caller: Connection) -> None:
    names = ("a", "ledger", "z")
    with Node(url, names) as one, Node(url, names, "n2") as other:
        token = one.lead().token
        one.terms.release("ledger", None)
        assert other.try_locks() == set(names)
        with caller.begin():
            fence(caller, "shop", "ledger", token)
            outcomes = other.terms.begin(names, other.who, 0.0)
        kinds = {name: type(outcome) for name, outcome in outcomes.items()}
        assert kinds == {"a": Begun, "ledger": BeginFailed, "z": Begun}
        other.heartbeat({name: outcomes[name].token for name in ("a", "z")})  # type: ignore[union-attr]  # both begun


def test_a_fence_does_not_hold_up_heartbeats(url: str, caller: Connection) -> None:
    with Node(url) as node:
        token = node.lead().token
        with caller.begin():
            fence(caller, "shop", "ledger", token)
            for _ in range(3):
                node.heartbeat({"ledger": token}, {"ledger"})


def test_many_transactions_of_one_term_are_fenced_at_once(url: str, caller: Connection) -> None:
    with Node(url) as node, create_engine(url, poolclass=NullPool).connect() as second:
        token = node.lead().token
        with caller.begin(), second.begin():
            fence(caller, "shop", "ledger", token)
            fence(second, "shop", "ledger", token)


def test_a_fenced_transaction_that_stalls_is_ended_by_the_server(
    url: str, caller: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fencing, "FENCED_TIMEOUT", 0.3)
    with Node(url) as one, Node(url, node="n2") as other:
        token = one.lead().token
        one.terms.release("ledger", None)
        assert other.try_locks() == {"ledger"}
        transaction = caller.begin()
        fence(caller, "shop", "ledger", token)

        def begun() -> bool:
            return isinstance(other.terms.begin(["ledger"], other.who, 0.0)["ledger"], Begun)

        wait_until(begun, LIMIT, "the stalled transaction to be ended")
        with pytest.raises(DBAPIError):
            caller.execute(text("select 1"))
        transaction.close()


def test_a_fence_leaves_the_callers_session_as_it_was(url: str, caller: Connection) -> None:
    with Node(url) as node:
        token = node.lead().token
        with caller.begin():
            before = caller.execute(text("show idle_in_transaction_session_timeout")).scalar()
            fence(caller, "shop", "ledger", token)
            assert caller.execute(text("show idle_in_transaction_session_timeout")).scalar() == "5s"
        assert caller.execute(text("show idle_in_transaction_session_timeout")).scalar() == before
