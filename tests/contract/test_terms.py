"""The lock session's statements: locks, terms, heartbeats, marks and notifications."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from celery_highlander.election.node import Mark
from celery_highlander.errors import KeyCollisionError, LockSessionError
from celery_highlander.store import migrations, terms
from celery_highlander.store.terms import member_of
from tests.arena.waiting import wait_until
from tests.contract.nodes import LIMIT, Node

if TYPE_CHECKING:
    from tests.arena.servers import Database

pytestmark = pytest.mark.postgres
MANY = tuple(f"s{number}" for number in range(50))


def stopped(database: Database) -> list[tuple[object, ...]]:
    return database.execute("select token, reason from highlander_term where stopped_at is not null order by token")


# -- locks -------------------------------------------------------------------------------------------------------------


def test_all_waiting_singletons_are_tried_for_in_one_statement(url: str, database: Database) -> None:
    statements: list[str] = []
    with Node(url, MANY) as node:
        event.listen(node.connection, "before_cursor_execute", lambda *args: statements.append(args[2]))
        assert node.try_locks() == set(MANY)
        assert len(statements) == 1
        held = database.execute(
            "select count(*), count(distinct pid) from pg_locks where locktype = 'advisory'"
            " and database = (select oid from pg_database where datname = current_database())"
        )
        assert held == [(50, 1)]


def test_a_lock_is_granted_to_one_node_only(url: str) -> None:
    with Node(url, ("a", "b")) as one, Node(url, ("a", "b"), "n2") as other:
        assert one.try_locks("a") == {"a"}
        assert other.try_locks("a", "b") == {"b"}
        assert one.try_locks("b") == set()


def test_a_poll_that_tries_for_nothing_gets_nothing_and_tells_of_the_terms(url: str) -> None:
    with Node(url) as one, Node(url, node="n2") as other:
        (before,) = other.terms.poll(("ledger",), frozenset())
        assert (before.granted, before.token, before.heartbeats) == (False, None, 0)
        token = one.lead().token
        one.heartbeat({"ledger": token})
        one.heartbeat({"ledger": token})
        (after,) = other.terms.poll(("ledger",), frozenset())
        assert (after.granted, after.token, after.heartbeats) == (False, token, 2)


def test_a_lock_goes_with_the_session_that_holds_it(url: str) -> None:
    with Node(url) as one, Node(url, node="n2") as other:
        one.lead()
        assert not other.try_locks()
        one.lose()
        wait_until(other.try_locks, LIMIT, "the lock of the lost session")


def test_a_lock_that_is_given_back_unused_is_free(url: str) -> None:
    with Node(url) as one, Node(url, node="n2") as other:
        one.try_locks()
        one.terms.unlock(["ledger"])
        assert other.try_locks() == {"ledger"}


def test_unlocking_what_is_not_held_is_an_error(url: str) -> None:
    with Node(url) as node, pytest.raises(LockSessionError):
        node.terms.unlock(["ledger"])


# -- terms -------------------------------------------------------------------------------------------------------------


def test_the_first_term_has_no_predecessor(url: str, database: Database) -> None:
    with Node(url) as node:
        begun = node.lead()
        assert begun.predecessor is None
        rows = database.execute("select node, worker, pid, token, elected_at, ended_at from highlander_term")
        assert rows == [("n1", "n1@arena", 4711, begun.token, None, None)]


def test_tokens_rise_from_term_to_term(url: str) -> None:
    tokens = []
    for number in range(5):
        with Node(url, node=f"n{number}") as node:
            wait_until(node.try_locks, LIMIT, "the lock")
            tokens.append(node.begin().token)
    assert tokens == sorted(set(tokens))


def test_tokens_rise_where_the_tables_were_dropped_and_made_anew(url: str, database: Database) -> None:
    with Node(url) as node:
        before = node.lead().token
    database.execute(
        "drop table highlander_singleton, highlander_term, highlander_entry, highlander_tick, highlander_runner, "
        "highlander_run, highlander_waiting, highlander_node, highlander_order, highlander_migration"
    )
    # The floor is the server's clock in seconds; a second later is the earliest that a token can differ by it.
    wait_until(
        lambda: database.execute(
            "select extract(epoch from clock_timestamp())::bigint - 1577836800 > %s", before % 2**32
        )[0][0],
        LIMIT,
        "the next second",
    )
    with Node(url, node="n2") as node:
        assert node.lead().token > before


def test_a_successor_is_told_what_its_predecessor_left(url: str) -> None:
    with Node(url, lease=4.0) as one, Node(url, node="n2") as other:
        token = one.lead().token
        for _ in range(3):
            one.heartbeat({"ledger": token}, {"ledger"})
        one.lose()
        wait_until(other.try_locks, LIMIT, "the lock")
        predecessor = other.begin().predecessor
        assert predecessor is not None
        assert (predecessor.token, predecessor.heartbeats, predecessor.owed) == (token, 3, 4.0)
        assert (predecessor.stopped, predecessor.same_instance) == (False, True)


def test_a_predecessor_that_left_its_mark_has_stopped(url: str) -> None:
    with Node(url) as one, Node(url, node="n2") as other:
        token = one.lead().token
        one.terms.release("ledger", Mark("ledger", token, "shutting down"))
        assert other.follow().stopped


def test_a_term_that_never_acted_passes_its_predecessors_lease_on(url: str) -> None:
    with Node(url, lease=60.0) as long, Node(url, node="n2", lease=5.0) as short, Node(url, node="n3") as last:
        long.heartbeat({"ledger": long.lead().token}, {"ledger"})
        long.lose()
        wait_until(short.try_locks, LIMIT, "the lock")
        token = short.begin().token
        short.heartbeat({"ledger": token})  # alive, but still waiting
        short.terms.release("ledger", None)
        assert last.follow().owed == 60.0


def test_a_term_that_acts_owes_its_own_lease_only(url: str) -> None:
    with Node(url, lease=60.0) as long, Node(url, node="n2", lease=5.0) as short, Node(url, node="n3") as last:
        long.heartbeat({"ledger": long.lead().token}, {"ledger"})
        long.lose()
        wait_until(short.try_locks, LIMIT, "the lock")
        short.heartbeat({"ledger": short.begin().token}, {"ledger"})
        short.terms.release("ledger", None)
        assert last.follow().owed == 5.0


def test_a_term_after_a_stopped_one_owes_its_own_lease_only(url: str) -> None:
    with Node(url, lease=60.0) as long, Node(url, node="n2", lease=5.0) as short, Node(url, node="n3") as last:
        token = long.lead().token
        long.terms.release("ledger", Mark("ledger", token, ""))
        short.lead()
        short.terms.release("ledger", None)
        assert last.follow().owed == 5.0


def test_many_terms_begin_in_one_statement(url: str, database: Database) -> None:
    with Node(url, MANY) as node:
        node.try_locks()
        outcomes = node.terms.begin(MANY, node.who, 0.0)
        assert set(outcomes) == set(MANY)
        assert database.execute("select count(*), count(distinct xmin::text) from highlander_singleton") == [(50, 1)]


def test_namespaces_share_the_tables_and_nothing_else(url: str) -> None:
    with Node(url) as shop, Node(url, node="n2", namespace="bank") as bank:
        shop.lead()
        assert bank.lead().predecessor is None
        shop.terms.rename("highlander shop n1 p0")
        assert [member.node for member in bank.terms.members()] == ["n2"]
        bank.terms.leave_marks((), notify=True)
        assert not shop.was_notified()


def test_schemas_have_tables_of_their_own(url: str, database: Database) -> None:
    with Node(url, schema="one", namespace="a") as one, Node(url, schema="two", namespace="b") as other:
        one.lead()
        assert other.lead().predecessor is None
    names = "select schemaname from pg_tables where tablename = 'highlander_singleton' order by 1"
    assert database.execute(names) == [("one",), ("two",)]


def test_a_key_that_belongs_to_another_name_is_refused(url: str, database: Database) -> None:
    with Node(url) as node:
        node.lead()
        database.execute("update highlander_singleton set name = 'a stranger'")
        with pytest.raises(KeyCollisionError, match=r"'ledger'.*'a stranger'"):
            node.terms.check_collisions()


def test_a_term_is_never_recorded_over_another_names(url: str, database: Database) -> None:
    with Node(url) as node:
        before = node.lead().token
        database.execute("update highlander_singleton set name = 'a stranger'")
        with pytest.raises(LockSessionError):
            node.begin()
        assert database.execute("select name, token from highlander_singleton") == [("a stranger", before)]


# -- heartbeats --------------------------------------------------------------------------------------------------------


def test_a_heartbeat_renews_its_own_token_only(url: str, database: Database) -> None:
    with Node(url) as one, Node(url, node="n2") as other:
        stale = one.lead().token
        one.terms.release("ledger", None)
        current = other.lead().token
        with pytest.raises(LockSessionError, match="replaced by later ones"):
            one.heartbeat({"ledger": stale}, {"ledger"})
        assert database.execute("select token, heartbeats from highlander_singleton") == [(current, 0)]


def test_a_heartbeat_that_renews_some_of_its_terms_is_a_loss(url: str) -> None:
    with Node(url, ("a", "b")) as node:
        terms = {name: node.lead(name).token for name in ("a", "b")}
        node.heartbeat(terms, terms)
        with pytest.raises(LockSessionError, match="1 of 2 terms"):
            node.heartbeat({**terms, "b": terms["b"] + 1}, terms)


def test_a_heartbeat_after_the_tables_were_emptied_is_a_loss(url: str, database: Database) -> None:
    with Node(url) as node:
        token = node.lead().token
        database.execute("truncate highlander_singleton")
        with pytest.raises(LockSessionError):
            node.heartbeat({"ledger": token}, {"ledger"})


def test_a_heartbeat_without_terms_still_asks_the_server(url: str, database: Database) -> None:
    with Node(url) as node:
        node.heartbeat({})
        database.server.terminate_backends("highlander shop n1%")
        with pytest.raises(DBAPIError):
            node.heartbeat({})


def test_a_heartbeat_answered_by_another_backend_is_a_loss(url: str) -> None:
    with Node(url) as one, Node(url, node="n2") as other:
        token = one.lead().token
        one.terms._connection = other.connection  # as a pooler may do it
        with pytest.raises(LockSessionError, match="backend"):
            one.heartbeat({"ledger": token}, {"ledger"})


def test_acting_is_recorded_once_with_the_first_acting_heartbeat(url: str, database: Database) -> None:
    elected_at = "select elected_at from highlander_term"
    with Node(url) as node:
        token = node.lead().token
        node.heartbeat({"ledger": token})
        assert database.execute(elected_at) == [(None,)]
        node.heartbeat({"ledger": token}, {"ledger"})
        first = database.execute(elected_at)
        assert first != [(None,)]
        node.heartbeat({"ledger": token}, {"ledger"})
        assert database.execute(elected_at) == first


def terms_of(database: Database, name: str) -> list[int]:
    sql = "select t.token from highlander_term t join highlander_singleton s using (key) where s.name = %s order by 1"
    return [int(token) for (token,) in database.execute(sql, name)]


def test_the_newest_terms_stay_on_record_and_older_ones_are_deleted_when_the_present_one_acts(
    url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terms, "KEPT_TERMS", 5)
    with Node(url, names=("ledger", "other")) as node:
        node.terms.rehearse(node.who)
        node.lead("other")
        before = [node.lead().token]
        for _ in range(7):
            node.terms.release("ledger", Mark("ledger", before[-1], "done"))
            before.append(node.lead().token)
        assert terms_of(database, "ledger") == before
        node.heartbeat({"ledger": before[-1]})
        assert terms_of(database, "ledger") == before  # it still waits
        node.heartbeat({"ledger": before[-1]}, {"ledger"})
        assert terms_of(database, "ledger") == before[-5:]
        assert len(terms_of(database, "other")) == 1


def test_a_present_term_and_the_one_that_it_awaits_are_never_deleted(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terms, "KEPT_TERMS", 2)
    with Node(url) as node:
        node.terms.rehearse(node.who)
        awaited = 0
        for _ in range(4):
            awaited = node.lead().token
            node.heartbeat({"ledger": awaited}, {"ledger"})
            node.terms.release("ledger", None)  # an unclean end
        assert node.lead().predecessor is not None
        node.terms.leave_marks((Mark("ledger", awaited, "late"),))
        assert node.terms.stopped({"ledger": awaited}) == {"ledger": awaited}


def test_a_term_whose_row_is_locked_is_left_for_the_next_time(
    url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terms, "KEPT_TERMS", 1)
    with Node(url) as node, contextlib.closing(database.server._connect(database.name)) as other:
        node.terms.rehearse(node.who)
        first = node.lead().token
        node.terms.release("ledger", None)
        other.autocommit = False
        other.cursor().execute("select from highlander_term where token = %s for update", (first,))
        second = node.lead().token
        node.heartbeat({"ledger": second}, {"ledger"})
        assert terms_of(database, "ledger") == [first, second]
        other.rollback()
        node.terms.release("ledger", None)
        third = node.lead().token
        node.heartbeat({"ledger": third}, {"ledger"})
        assert terms_of(database, "ledger") == [third]


def test_a_role_that_may_not_delete_keeps_every_term(
    url: str, database: Database, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terms, "KEPT_TERMS", 1)
    with Node(url):
        pass  # the tables are there
    database.execute("create role clerk login")
    try:
        for statement in filter(None, map(str.strip, migrations.grants("", "clerk").split(";"))):
            if "delete" not in statement:
                database.execute(statement)
        with Node(database.url(driver, user="clerk")) as node:
            node.terms.rehearse(node.who)
            for _ in range(3):
                token = node.lead().token
                node.heartbeat({"ledger": token}, {"ledger"})
                node.terms.release("ledger", None)
        assert len(terms_of(database, "ledger")) == 3
    finally:
        database.execute("drop owned by clerk")
        database.execute("drop role clerk")


def test_heartbeats_do_not_grow_the_indexes(url: str, database: Database) -> None:
    with Node(url) as node:
        token = node.lead().token
        size = "select pg_relation_size('highlander_singleton_key_token_key'), pg_relation_size('highlander_singleton')"
        before = database.execute(size)
        for _ in range(500):
            node.heartbeat({"ledger": token}, {"ledger"})
        assert database.execute(size) == before


# -- marks -------------------------------------------------------------------------------------------------------------


def test_a_stopped_mark_is_left_by_the_exact_token(url: str, database: Database) -> None:
    with Node(url) as node:
        token = node.lead().token
        node.terms.leave_marks((Mark("ledger", token + 1, "no"), Mark("ledger", token - 1, "no")))
        assert stopped(database) == []
        assert node.terms.stopped({"ledger": token}) == {}
        node.terms.leave_marks((Mark("ledger", token, "yes"),))
        assert stopped(database) == [(token, "yes")]
        assert node.terms.stopped({"ledger": token}) == {"ledger": token}
        assert node.terms.stopped({"ledger": token + 1}) == {}


def test_the_first_mark_of_a_term_stays(url: str, database: Database) -> None:
    with Node(url) as node:
        token = node.lead().token
        for reason in ("first", "second"):
            node.terms.leave_marks((Mark("ledger", token, reason),))
        assert stopped(database) == [(token, "first")]


def test_a_mark_may_come_after_the_next_term_began(url: str) -> None:
    with Node(url) as one, Node(url, node="n2") as other, Node(url, node="n3") as late:
        token = one.lead().token
        one.lose()
        wait_until(other.try_locks, LIMIT, "the lock")
        other.begin()
        assert other.terms.stopped({"ledger": token}) == {}
        late.terms.leave_marks((Mark("ledger", token, "killed"),), notify=True)
        wait_until(other.was_notified, LIMIT, "the notification")
        assert other.terms.stopped({"ledger": token}) == {"ledger": token}


def test_a_release_commits_the_mark_before_it_unlocks(url: str, database: Database) -> None:
    seen: list[list[tuple[object, ...]]] = []

    def look(*args: Any) -> None:
        if "pg_advisory_unlock" in args[2]:
            seen.append(stopped(database))

    with Node(url) as one, Node(url, node="n2") as other:
        token = one.lead().token
        event.listen(one.connection, "before_cursor_execute", look)
        one.terms.release("ledger", Mark("ledger", token, "handed over"))
        assert seen == [[(token, "handed over")]]
        assert other.follow().stopped


def test_releasing_a_lock_that_is_not_held_is_an_error(url: str) -> None:
    with Node(url) as node, pytest.raises(LockSessionError):
        node.terms.release("ledger", None)


# -- notifications and members -----------------------------------------------------------------------------------------


def test_a_release_wakes_a_listener(url: str) -> None:
    with Node(url) as one, Node(url, node="n2") as other:
        token = one.lead().token
        assert not other.was_notified()
        one.terms.release("ledger", Mark("ledger", token, ""))
        wait_until(other.was_notified, LIMIT, "the notification")
        assert not other.was_notified()


def test_a_notification_makes_the_socket_readable(url: str) -> None:
    import select

    with Node(url) as one, Node(url, node="n2") as other:
        one.lead()
        one.terms.release("ledger", None)
        assert select.select([other.driver.fileno()], [], [], LIMIT)[0]
        assert other.was_notified()


def test_a_notification_that_comes_with_an_answer_is_not_lost(url: str) -> None:
    import select

    with Node(url) as one, Node(url, node="n2") as other:
        one.lead()
        one.terms.release("ledger", None)
        assert select.select([other.driver.fileno()], [], [], LIMIT)[0]
        other.terms.stopped({"ledger": 1})
        assert not select.select([other.driver.fileno()], [], [], 0)[0]
        assert other.notifications.take(arrived=False)
        assert not other.was_notified()


def test_a_terminated_backend_shows_on_the_socket(url: str, database: Database) -> None:
    import select

    with Node(url) as node:
        database.server.terminate_backends("highlander shop n1%")
        assert select.select([node.driver.fileno()], [], [], LIMIT)[0]
        with pytest.raises(Exception, match=r"terminat|closed|connection"):
            wait_until(node.was_notified, LIMIT, "the driver to see that the connection broke")


def test_nodes_count_the_sessions_that_live(url: str) -> None:
    with Node(url) as one, Node(url, node="n2", eligible=False) as other:
        found = {member.node: member.eligible for member in one.terms.members()}
        assert found == {"n1": True, "n2": False}
        other.lose()
        wait_until(lambda: [member.node for member in one.terms.members()] == ["n1"], LIMIT, "the session to be gone")


def test_a_node_that_leaves_is_no_candidate_any_more(url: str) -> None:
    with Node(url) as one, Node(url, node="n2") as other:
        one.terms.rename("highlander shop n1 x0")
        assert {member.node: member.eligible for member in other.terms.members()} == {"n1": False, "n2": True}


@pytest.mark.parametrize(
    "name", ["highlander shop n1 px", "highlander shop n1 q1", "highlander shop", "highlander bank n1 p1", "", "psql"]
)
def test_a_session_of_a_similar_name_is_no_member(name: str) -> None:
    assert member_of(name, "shop") is None


def test_a_strangers_application_name_does_not_disturb(url: str) -> None:
    from celery_highlander.store.connecting import Target, open_connection

    with Node(url) as node, contextlib.closing(open_connection(Target(url, {}), "highlander shop evil pX")):
        assert [member.node for member in node.terms.members()] == ["n1"]
