"""The contract of the statements behind singleton runs, for PostgreSQL and for the simulator's model of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import pytest

from celery_highlander.errors import LockSessionError
from celery_highlander.store.runs import Tried, Try
from celery_highlander.store.terms import Identity

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from celery_highlander.store.runs import Registration

KEY = 4_000
LEASE = 6.0


class Statements(Protocol):
    """What `RunLocks` can do."""

    def register(self, who: Identity) -> Registration: ...
    def settle(self) -> None: ...
    def beat(self) -> None: ...
    def runners(self) -> dict[str, tuple[int, float]]: ...
    def take(self, tries: Sequence[Try], excluded: Collection[int], paid: Collection[str]) -> dict[int, Tried]: ...
    def free(self, keys: Iterable[int]) -> None: ...
    def mark(self, ended: Mapping[str, Collection[int]]) -> None: ...


class Session(Protocol):
    """A lock session; `lose` returns when the server has ended it."""

    @property
    def holder(self) -> str: ...
    @property
    def runs(self) -> Statements: ...
    def lose(self) -> None: ...


class Bench(Protocol):
    """A database, and a look into it."""

    def session(self, node: str = "n1", lease: float = LEASE) -> Session: ...
    def rows(self) -> dict[int, str]: ...
    def locks(self) -> set[int]: ...
    def clear_row(self, key: int) -> None: ...
    def fenced(self, key: int, token: int) -> AbstractContextManager[object]: ...


class FragileBench(Bench, Protocol):
    """A database with a server of its own."""

    def restart(self) -> None: ...
    def crash(self) -> None: ...
    def promote(self) -> None: ...


def identity(node: str = "n1") -> Identity:
    return Identity(node, f"{node}@arena", 4711)


def attempt(base: int = KEY, limit: int = 1, start: int = 0, *, fenced: bool = False, number: int = 1) -> Try:
    return Try(number, base, limit, start, f"key {base}", "shop.pay", f"id-{base}", fenced)


def take(session: Session, *tries: Try, excluded: Collection[int] = (), paid: Collection[str] = ()) -> Tried:
    """Make tries in one statement; the outcome of the first."""
    tries = tries or (attempt(),)
    return session.runs.take(tries, excluded, paid)[tries[0].number]


class RunContract:
    """What holds of every database; `bench` is the subclass's."""

    def test_a_free_key_is_taken_and_its_row_says_by_whom(self, bench: Bench) -> None:
        session = bench.session()
        assert take(session).taken
        assert bench.rows() == {KEY: session.holder}
        assert bench.locks() == {KEY}

    def test_a_key_is_held_by_one_session_and_the_other_is_told_by_which_run(self, bench: Bench) -> None:
        one, other = bench.session(), bench.session("n2")
        take(one)
        found = take(other)
        assert not found.taken
        assert (found.key, found.holder, found.task_id) == (None, one.holder, f"id-{KEY}")
        assert bench.rows() == {KEY: one.holder}

    def test_a_key_that_was_given_back_is_taken_by_another_session(self, bench: Bench) -> None:
        one, other = bench.session(), bench.session("n2")
        take(one)
        one.runs.free([KEY])
        assert bench.rows() == {}
        assert bench.locks() == set()
        assert take(other).taken

    def test_many_keys_are_tried_for_in_one_statement(self, bench: Bench) -> None:
        one, other = bench.session(), bench.session("n2")
        take(one, attempt(KEY + 1))
        tries = [attempt(KEY + offset, number=offset) for offset in range(3)]
        found = other.runs.take(tries, (), ())
        assert {number: tried.taken for number, tried in found.items()} == {0: True, 1: False, 2: True}
        assert bench.rows() == {KEY: other.holder, KEY + 1: one.holder, KEY + 2: other.holder}

    def test_a_key_that_the_session_holds_itself_is_not_taken_twice(self, bench: Bench) -> None:
        session = bench.session()
        take(session)
        assert not take(session).taken
        assert bench.rows() == {KEY: session.holder}
        session.runs.free([KEY])
        assert bench.locks() == set()  # it was not locked twice

    def test_a_text_that_looks_like_a_piece_of_an_array_is_a_text(self, bench: Bench) -> None:
        one, other = bench.session(), bench.session("n2")
        task_id = "a \"b\", {c}\\, NULL '%s'"
        take(one, replace(attempt(), task_id=task_id))
        assert take(other).task_id == task_id

    # -- slots ---------------------------------------------------------------------------------------------------------

    def test_as_many_slots_as_the_limit_are_taken_and_no_more(self, bench: Bench) -> None:
        one, other = bench.session(), bench.session("n2")
        assert take(one, attempt(limit=3, start=1)).key == KEY + 1
        assert take(other, attempt(limit=3, start=1)).key == KEY + 2
        assert take(other, attempt(limit=3, start=1), excluded=[KEY + 2]).key == KEY
        assert take(one, attempt(limit=3, start=1), excluded=[KEY + 1]).key is None
        assert bench.locks() == {KEY, KEY + 1, KEY + 2}

    def test_a_slot_that_the_session_holds_itself_is_left_out(self, bench: Bench) -> None:
        session = bench.session()
        assert take(session, attempt(limit=2)).key == KEY
        assert take(session, attempt(limit=2), excluded=[KEY]).key == KEY + 1
        assert take(session, attempt(limit=2), excluded=[KEY, KEY + 1]).key is None
        session.runs.free([KEY, KEY + 1])
        assert bench.locks() == set()  # none of them was locked twice

    def test_a_slot_is_given_back_and_taken_again(self, bench: Bench) -> None:
        one, other = bench.session(), bench.session("n2")
        take(one, attempt(limit=2))
        take(one, attempt(limit=2), excluded=[KEY])
        one.runs.free([KEY + 1])
        assert take(other, attempt(limit=2)).key == KEY + 1

    def test_keys_with_slots_and_without_are_tried_for_together(self, bench: Bench) -> None:
        session = bench.session()
        found = session.runs.take([attempt(number=1), attempt(KEY + 10, limit=2, start=1, number=2)], (), ())
        assert {number: tried.key for number, tried in found.items()} == {1: KEY, 2: KEY + 11}

    # -- debts ---------------------------------------------------------------------------------------------------------

    def test_the_key_of_a_dead_session_is_a_debt_and_its_lock_is_given_back(self, bench: Bench) -> None:
        dead, other = bench.session(lease=9.0), bench.session("n2")
        take(dead)
        dead.lose()
        for _ in range(2):
            found = take(other)
            assert (found.key, found.taken) == (KEY, False)
            assert (found.holder, found.lease) == (dead.holder, 9.0)
            assert bench.locks() == set()
        assert bench.rows() == {KEY: dead.holder}

    def test_a_slot_of_a_dead_session_is_a_debt_and_its_lock_is_given_back(self, bench: Bench) -> None:
        dead, other = bench.session(), bench.session("n2")
        take(dead, attempt(limit=2, start=1))
        dead.lose()
        found = take(other, attempt(limit=2, start=1))
        assert (found.key, found.taken, found.holder) == (KEY + 1, False, dead.holder)
        assert bench.locks() == set()

    def test_a_debt_that_is_paid_is_overtaken(self, bench: Bench) -> None:
        dead, other = bench.session(), bench.session("n2")
        take(dead)
        dead.lose()
        assert take(other, paid=[dead.holder]).taken
        assert bench.rows() == {KEY: other.holder}
        assert bench.locks() == {KEY}

    def test_a_debt_of_somebody_else_is_not_paid_with_it(self, bench: Bench) -> None:
        dead, later, other = bench.session(), bench.session("n2"), bench.session("n3")
        take(dead)
        dead.lose()
        take(later, paid=[dead.holder])
        later.lose()
        found = take(other, paid=[dead.holder])
        assert (found.taken, found.holder) == (False, later.holder)

    def test_a_debt_keeps_back_no_other_key_of_the_statement(self, bench: Bench) -> None:
        dead, other = bench.session(), bench.session("n2")
        take(dead)
        dead.lose()
        found = other.runs.take([attempt(number=1), attempt(KEY + 1, number=2)], (), ())
        assert (found[1].taken, found[2].taken) == (False, True)
        assert bench.locks() == {KEY + 1}

    def test_a_lost_sessions_run_that_ended_owes_nothing(self, bench: Bench) -> None:
        dead = bench.session()
        dead.runs.register(identity())
        take(dead)
        dead.lose()
        again = bench.session()
        again.runs.mark({dead.holder: frozenset()})
        assert bench.rows() == {}
        assert take(bench.session("n2")).taken

    def test_of_a_lost_session_the_keys_stay_whose_runs_go_on(self, bench: Bench) -> None:
        dead = bench.session()
        dead.runs.register(identity())
        dead.runs.take([attempt(KEY + offset, number=offset) for offset in range(3)], (), ())
        dead.lose()
        again = bench.session()
        again.runs.mark({dead.holder: {KEY + 1}})
        assert bench.rows() == {KEY + 1: dead.holder}
        assert dead.holder in again.runs.runners()
        again.runs.mark({dead.holder: frozenset()})
        assert bench.rows() == {}
        assert dead.holder not in again.runs.runners()

    def test_a_mark_leaves_what_others_hold(self, bench: Bench) -> None:
        dead, other = bench.session(), bench.session("n2")
        take(dead)
        take(other, attempt(KEY + 1))
        dead.lose()
        bench.session().runs.mark({dead.holder: frozenset()})
        assert bench.rows() == {KEY + 1: other.holder}

    # -- giving back ---------------------------------------------------------------------------------------------------

    def test_a_key_whose_row_was_removed_by_hand_is_given_back(self, bench: Bench) -> None:
        session = bench.session()
        session.runs.take([attempt(number=1), attempt(KEY + 1, number=2)], (), ())
        bench.clear_row(KEY)
        session.runs.free([KEY, KEY + 1])
        assert bench.locks() == set()

    def test_giving_back_what_is_not_held_is_an_error(self, bench: Bench) -> None:
        with pytest.raises(LockSessionError):
            bench.session().runs.free([KEY])

    # -- sessions ------------------------------------------------------------------------------------------------------

    def test_heartbeats_are_counted_and_everybody_sees_them(self, bench: Bench) -> None:
        one, other = bench.session(lease=9.0), bench.session("n2")
        one.runs.register(identity())
        assert other.runs.runners() == {one.holder: (0, 9.0)}
        one.runs.beat()
        one.runs.beat()
        assert other.runs.runners() == {one.holder: (2, 9.0)}

    def test_registering_again_is_a_heartbeat(self, bench: Bench) -> None:
        session = bench.session()
        session.runs.register(identity())
        session.runs.register(identity())
        assert session.runs.runners() == {session.holder: (1, LEASE)}

    def test_a_heartbeat_without_a_row_is_an_error(self, bench: Bench) -> None:
        with pytest.raises(LockSessionError):
            bench.session().runs.beat()

    def test_a_session_that_registers_is_told_the_longest_lease(self, bench: Bench) -> None:
        bench.session("n2", 20.0).runs.register(identity("n2"))
        assert bench.session("n3", 9.0).runs.register(identity("n3")).longest_lease == 20.0

    def test_new_tables_are_settled(self, bench: Bench) -> None:
        assert bench.session().runs.register(identity()).settled

    # -- tokens --------------------------------------------------------------------------------------------------------

    def test_tokens_rise_over_runs_and_sessions(self, bench: Bench) -> None:
        tokens = []
        for node in ("n1", "n2"):
            session = bench.session(node)
            for _ in range(2):
                found = take(session, attempt(fenced=True))
                assert found.taken
                assert found.token is not None
                tokens.append(found.token)
                session.runs.free([KEY])
            session.lose()
        assert tokens == sorted(set(tokens))

    def test_a_run_that_wants_no_token_gets_none(self, bench: Bench) -> None:
        assert take(bench.session()).token is None

    def test_a_fenced_transaction_keeps_back_the_next_token_and_its_key_for_now(self, bench: Bench) -> None:
        one, other = bench.session(), bench.session("n2")
        token = take(one, attempt(fenced=True)).token
        assert token is not None
        one.runs.free([KEY])
        with bench.fenced(KEY, token):
            found = take(other, attempt(fenced=True))
            assert (found.key, found.taken) == (None, False)
            assert bench.locks() == set()
            assert bench.rows() == {}
        after = take(other, attempt(fenced=True))
        assert after.taken
        assert after.token is not None
        assert after.token > token


class DisasterContract:
    """What a server's end leaves of the tables."""

    def test_after_a_restart_the_rows_are_there_and_settled(self, bench: FragileBench) -> None:
        session = bench.session()
        session.runs.register(identity())
        take(session)
        bench.restart()
        assert bench.rows() == {KEY: session.holder}
        other = bench.session("n2")
        assert other.runs.register(identity("n2")).settled
        assert take(other).holder == session.holder

    def test_after_a_crash_the_rows_are_gone_and_it_shows(self, bench: FragileBench) -> None:
        session = bench.session(lease=9.0)
        session.runs.register(identity())
        take(session)
        bench.crash()
        assert bench.rows() == {}
        other = bench.session("n2")
        registration = other.runs.register(identity("n2"))
        assert (registration.settled, registration.longest_lease) == (False, 9.0)
        other.runs.settle()
        other.runs.settle()  # another node may have been faster
        assert bench.session("n3").runs.register(identity("n3")).settled

    def test_after_a_promotion_the_rows_are_gone_and_it_shows(self, bench: FragileBench) -> None:
        session = bench.session(lease=9.0)
        session.runs.register(identity())
        token = take(session, attempt(fenced=True)).token
        bench.promote()
        assert bench.rows() == {}
        other = bench.session("n2")
        registration = other.runs.register(identity("n2"))
        assert (registration.settled, registration.longest_lease) == (False, 9.0)
        later = take(other, attempt(fenced=True)).token
        assert token is not None
        assert later is not None
        assert later > token
