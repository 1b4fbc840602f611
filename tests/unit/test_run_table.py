"""The singleton runs of one node, driven by hand."""

from __future__ import annotations

from math import inf
from typing import Any, TypeVar

import pytest

from celery_highlander.election.lease import Timing, wait_for
from celery_highlander.keeper import run_table as r
from celery_highlander.store.runs import Registration, Tried

TIMING = Timing()
KEY = 4_000
START = 1000.0
LONG = wait_for(TIMING.lease)
_Effect = TypeVar("_Effect")


class Desk:
    """A table with a clock; what it wants is kept until somebody looks."""

    def __init__(self, timing: Timing = TIMING) -> None:
        self.now = START
        self.table = r.RunTable(timing, lambda: 0.0)
        self.effects: list[r.RunEffect] = []
        self._numbers = 0

    def feed(self, *events: r.RunEvent) -> None:
        for event in events:
            self.effects += self.table.handle(event, self.now)

    def later(self, seconds: float) -> None:
        self.now += seconds
        if self.now >= self.table.next_deadline():
            self.feed(r.Tick())

    def take(self, kind: type[_Effect]) -> list[_Effect]:
        """The effects of a kind since the last look at them."""
        found: list[Any] = [effect for effect in self.effects if isinstance(effect, kind)]
        self.effects = [effect for effect in self.effects if not isinstance(effect, kind)]
        return found

    def open(self, *, settled: bool = True, session: int = 1, longest: float = TIMING.lease) -> None:
        """A session is there, and registered."""
        self.feed(r.SessionOpen(f"me/{session}", "one"))
        self.feed(r.Registered(self.now, Registration(settled, longest)), r.Looked({}))

    def want(self, base: int = KEY, **changes: Any) -> r.RunId:
        self._numbers += 1
        wanted = {"limit": 1, "wait": 0.0, "fenced": False, "abort": True, **changes}
        self.feed(r.Wanted((1, self._numbers), r.Want(base, name="key", task="pay", task_id="id", **wanted)))
        return (1, self._numbers)

    def last_take(self) -> r.Take:
        [take] = self.take(r.Take)
        return take

    def reply(self, *, key: int | None = KEY, taken: bool = True, holder: str | None = None, **more: Any) -> None:
        """Answer the only try of the last statement."""
        [one] = self.last_take().tries
        self.feed(r.Taken({one.number: Tried(key, taken, holder, **more)}))

    def hold(self, base: int = KEY, **changes: Any) -> r.RunId:
        """A run that holds a key."""
        run = self.want(base, **changes)
        self.reply(key=base)
        assert [answer.result for answer in self.take(r.Answer)] == ["held"]
        return run

    def owe(self, holder: str = "other/1", lease: float = TIMING.lease, heartbeats: int | None = 3) -> None:
        """The key that is tried for is a debt, whose heartbeats are read again."""
        self.reply(taken=False, holder=holder, lease=lease)
        self.look(holder, lease, heartbeats)

    def look(self, holder: str, lease: float, heartbeats: int | None) -> None:
        self.take(r.Look)
        self.feed(r.Looked({} if heartbeats is None else {holder: (heartbeats, lease)}))

    def relied_on(self) -> bool:
        return self.table.needs_heartbeats

    def results(self) -> list[str]:
        return [answer.result for answer in self.take(r.Answer)]

    def paid(self) -> frozenset[str]:
        """Whose debts are paid, as the next try says; it fails."""
        self.later(2 * r.POLL_INTERVAL)
        take = self.last_take()
        self.feed(r.Taken({one.number: Tried(None, False) for one in take.tries}))
        return take.paid


@pytest.fixture
def desk() -> Desk:
    made = Desk()
    made.open()
    return made


# -- keys --------------------------------------------------------------------------------------------------------------


def test_a_free_key_is_held_with_its_token(desk: Desk) -> None:
    run = desk.want(fenced=True)
    desk.reply(token=77)
    assert desk.take(r.Answer) == [r.Answer(run, "held", KEY, 77)]


def test_the_session_registers_with_the_first_run() -> None:
    desk = Desk()
    desk.feed(r.SessionOpen("me/1", "one"))
    assert desk.effects == []
    assert not desk.relied_on()
    desk.want()
    assert desk.take(r.Register) == [r.Register()]
    assert not desk.take(r.Take)
    desk.feed(r.Registered(desk.now, Registration(True, TIMING.lease)))
    assert desk.relied_on()
    assert len(desk.last_take().tries) == 1


def test_a_key_that_another_node_holds_is_busy(desk: Desk) -> None:
    run = desk.want()
    desk.reply(key=None, taken=False, holder="other/1", task_id="theirs")
    assert desk.take(r.Answer) == [r.Answer(run, "busy", reason="theirs")]


def test_a_run_that_waits_tries_again_until_its_time_is_over(desk: Desk) -> None:
    run = desk.want(wait=0.25)
    desk.reply(key=None, taken=False, holder="other/1")
    assert not desk.take(r.Answer)
    desk.later(r.POLL_INTERVAL)
    desk.reply(key=None, taken=False, holder="other/1")
    desk.later(0.2)
    assert desk.take(r.Answer) == [r.Answer(run, "busy")]
    assert not desk.take(r.Take)


def test_a_key_that_a_run_of_this_node_holds_is_not_tried_for(desk: Desk) -> None:
    desk.hold()
    desk.want()
    assert not desk.take(r.Take)
    assert desk.results() == ["busy"]


def test_a_run_that_waits_here_is_next_when_the_run_before_has_ended(desk: Desk) -> None:
    first = desk.hold()
    second = desk.want(wait=9.0)
    assert not desk.take(r.Take)
    desk.feed(r.Ended(first))
    take = desk.last_take()
    assert take.free == (KEY,)
    assert [one.base for one in take.tries] == [KEY]
    desk.feed(r.Taken({take.tries[0].number: Tried(KEY, True)}))
    assert desk.take(r.Answer) == [r.Answer(second, "held", KEY)]


def test_one_statement_is_under_way_at_a_time(desk: Desk) -> None:
    desk.want()
    first = desk.last_take()
    desk.want(KEY + 1)
    desk.want(KEY + 2)
    assert not desk.take(r.Take)
    desk.feed(r.Taken({first.tries[0].number: Tried(KEY, True)}))
    assert [one.base for one in desk.last_take().tries] == [KEY + 1, KEY + 2]


def test_slots_that_runs_of_this_node_hold_are_left_out(desk: Desk) -> None:
    desk.hold(limit=2)
    desk.want(limit=2)
    assert desk.last_take().excluded == {KEY}


def test_a_slot_that_is_a_debt_keeps_no_run_from_a_free_one(desk: Desk) -> None:
    desk.want(limit=2)
    desk.reply(key=KEY, taken=False, holder="other/1")
    assert not desk.results()
    take = desk.last_take()
    assert take.excluded == {KEY}
    desk.feed(r.Taken({take.tries[0].number: Tried(KEY + 1, True)}))
    assert desk.results() == ["held"]


def test_where_all_slots_are_held_or_owed_a_run_is_told_and_the_debts_are_looked_at_again(desk: Desk) -> None:
    desk.want(limit=2, wait=60.0)
    desk.reply(key=KEY, taken=False, holder="other/1")
    desk.reply(key=KEY + 1, taken=False, holder="other/1")
    desk.reply(key=None, taken=False)
    assert not desk.take(r.Take)
    desk.later(r.POLL_INTERVAL)
    assert desk.last_take().excluded == frozenset()


def test_a_run_that_ends_while_it_is_asked_for_gives_its_key_back(desk: Desk) -> None:
    run = desk.want()
    desk.feed(r.Ended(run))
    desk.reply()
    assert not desk.take(r.Answer)
    desk.later(r.FREE_DELAY)
    assert desk.last_take().free == (KEY,)


def test_keys_that_nobody_waits_for_here_are_given_back_together_milliseconds_later(desk: Desk) -> None:
    runs = [desk.hold(KEY), desk.hold(KEY + 1)]
    desk.feed(r.Ended(runs[0]))
    desk.later(r.FREE_DELAY / 2)
    desk.feed(r.Ended(runs[1]))
    assert not desk.take(r.Take)
    assert not desk.table.idle
    desk.later(r.FREE_DELAY)
    assert desk.last_take().free == (KEY, KEY + 1)
    assert desk.table.idle


def test_a_key_is_not_given_back_just_before_another_one_is_tried_for(desk: Desk) -> None:
    desk.feed(r.Ended(desk.hold(KEY)))
    desk.want(KEY + 1)
    take = desk.last_take()
    assert take.free == ()
    desk.feed(r.Taken({take.tries[0].number: Tried(KEY + 1, True)}))
    desk.later(r.FREE_DELAY)
    assert desk.last_take().free == (KEY,)


def test_a_key_is_given_back_before_it_is_tried_for_again(desk: Desk) -> None:
    for run in [desk.hold(KEY), desk.hold(KEY + 1)]:
        desk.feed(r.Ended(run))
    desk.want(KEY)
    take = desk.last_take()
    assert ([one.base for one in take.tries], take.free) == ([KEY], (KEY,))


# -- no session --------------------------------------------------------------------------------------------------------


def test_without_a_session_a_run_is_told_after_a_while() -> None:
    desk = Desk()
    desk.want(wait=60.0)
    desk.later(r.PATIENCE * 0.9)
    assert not desk.results()
    desk.later(r.PATIENCE * 0.2)
    assert desk.results() == ["unavailable"]


def test_a_run_that_waits_survives_a_short_loss(desk: Desk) -> None:
    desk.want()
    desk.feed(r.SessionLost("cut"))
    desk.take(r.Take)
    desk.later(0.5)
    desk.open(session=2)
    desk.reply()
    assert desk.results() == ["held"]


def test_where_the_tables_may_not_be_used_runs_are_refused() -> None:
    desk = Desk()
    desk.feed(r.SessionOpen("me/1", "one"))
    run = desk.want(wait=9.0)
    desk.feed(r.Refused("no rights"))
    assert desk.take(r.Answer) == [r.Answer(run, "refused", reason="no rights")]


def test_a_session_without_runs_ends_its_heartbeats(desk: Desk) -> None:
    desk.feed(r.Ended(desk.hold()))
    desk.feed(r.Taken({}))
    while desk.now < START + r.IDLE_DURATION:
        assert desk.table.needs_heartbeats
        desk.later(desk.table.next_deadline() - desk.now)
        if desk.take(r.Look):
            desk.feed(r.Looked({}))
    assert not desk.table.needs_heartbeats
    assert desk.table.next_deadline() == inf


# -- lost sessions -----------------------------------------------------------------------------------------------------


def test_a_run_that_loses_its_session_is_told_and_killed_before_the_lease_ends(desk: Desk) -> None:
    run = desk.hold()
    desk.later(1.0)
    desk.feed(r.Beaten(START + 0.5))
    kill_at = START + 0.5 + TIMING.lease - TIMING.kill_margin
    assert desk.table.kill_deadline == kill_at
    desk.feed(r.SessionLost("cut"))
    assert desk.take(r.Lost) == [r.Lost(run, kill_at, "cut")]
    assert desk.table.kill_deadline == kill_at
    desk.later(kill_at - desk.now - 0.01)
    assert not desk.take(r.KillRun)
    desk.later(0.02)
    assert desk.take(r.KillRun) == [r.KillRun(run)]
    desk.later(1.0)
    assert not desk.take(r.KillRun)


def test_a_loss_that_is_noticed_after_the_deadline_kills_at_once(desk: Desk) -> None:
    run = desk.hold()
    desk.now += 2 * TIMING.lease
    desk.feed(r.SessionLost("the keeper stood still"))
    desk.later(0.0)
    assert desk.take(r.KillRun) == [r.KillRun(run)]


def test_a_run_that_may_go_on_is_not_killed(desk: Desk) -> None:
    desk.hold(abort=False)
    assert desk.table.kill_deadline == 0.0
    desk.feed(r.SessionLost("cut"))
    desk.later(2 * TIMING.lease)
    assert not desk.take(r.Lost) + desk.take(r.KillRun)


def test_the_deadline_counts_from_the_sending_of_a_heartbeat(desk: Desk) -> None:
    desk.hold()
    desk.later(2.0)
    desk.feed(r.Beaten(desk.now - 1.5))
    assert desk.table.kill_deadline == TIMING.kill_deadline(desk.now - 1.5 + TIMING.lease)


def test_the_key_of_a_lost_run_is_not_tried_for_as_long_as_it_goes_on(desk: Desk) -> None:
    lost = desk.hold()
    desk.feed(r.SessionLost("cut"))
    desk.open(session=2)
    assert desk.take(r.MarkRuns) == [r.MarkRuns({"me/1": frozenset({KEY})})]
    desk.want(wait=9.0)
    assert not desk.take(r.Take)
    desk.feed(r.Ended(lost))
    assert desk.take(r.MarkRuns) == [r.MarkRuns({"me/1": frozenset()})]
    desk.reply()
    assert desk.results() == ["held"]


def test_what_a_lost_session_owes_is_marked_by_the_next_one(desk: Desk) -> None:
    run = desk.hold()
    desk.feed(r.SessionLost("cut"), r.Ended(run))
    assert not desk.table.idle
    desk.feed(r.SessionOpen("me/2", "one"))
    assert desk.take(r.Register)
    desk.feed(r.Registered(desk.now, Registration(True, TIMING.lease)))
    assert desk.take(r.MarkRuns) == [r.MarkRuns({"me/1": frozenset()})]
    assert desk.table.idle


def test_a_key_that_comes_too_late_to_begin_is_given_back(desk: Desk) -> None:
    desk.want(wait=60.0)
    desk.now += TIMING.lease - TIMING.kill_margin
    desk.reply()
    assert not desk.take(r.Answer)
    assert desk.last_take().free == (KEY,)


# -- debts -------------------------------------------------------------------------------------------------------------


def test_a_debt_is_paid_a_lease_after_its_heartbeats_were_read_again(desk: Desk) -> None:
    desk.want(wait=60.0)
    desk.later(1.0)
    desk.owe()
    read_at = desk.now
    while desk.now < read_at + LONG - 0.5:
        assert desk.paid() == frozenset()
    desk.now = read_at + LONG
    assert desk.paid() == {"other/1"}


def test_heartbeats_that_were_seen_before_count_from_then(desk: Desk) -> None:
    desk.look("other/1", TIMING.lease, 3)
    seen_at = desk.now
    desk.later(3.0)
    desk.want(wait=60.0)
    desk.owe(heartbeats=3)
    desk.now = seen_at + LONG
    assert desk.paid() == {"other/1"}


def test_heartbeats_that_have_risen_since_count_from_now(desk: Desk) -> None:
    desk.look("other/1", TIMING.lease, 3)
    seen_at = desk.now
    desk.later(3.0)
    desk.want(wait=60.0)
    desk.owe(heartbeats=4)
    desk.now = seen_at + LONG
    assert desk.paid() == frozenset()


def test_no_debt_is_paid_before_the_heartbeats_were_read_again(desk: Desk) -> None:
    desk.look("other/1", TIMING.lease, 3)
    desk.now += 2 * LONG
    desk.want(wait=60.0)
    desk.reply(taken=False, holder="other/1", lease=TIMING.lease)
    assert desk.take(r.Look)
    assert desk.paid() == frozenset()
    desk.feed(r.Looked({"other/1": (3, TIMING.lease)}))
    assert desk.paid() == {"other/1"}


def test_a_debt_of_a_longer_lease_is_waited_for_longer(desk: Desk) -> None:
    desk.want(wait=60.0)
    desk.owe(lease=20.0, heartbeats=None)
    desk.now += 19.0
    assert desk.paid() == frozenset()
    desk.now += 1.0
    assert desk.paid() == {"other/1"}


# -- tables that lost their rows ---------------------------------------------------------------------------------------


def test_without_the_settled_mark_nobody_gets_a_key_before_the_longest_lease_is_over() -> None:
    desk = Desk()
    desk.feed(r.SessionOpen("me/1", "one"))
    desk.later(0.5)
    desk.want()
    desk.feed(r.Registered(desk.now, Registration(False, 20.0)), r.Looked({}))
    desk.later(r.PATIENCE)
    assert desk.results() == ["unavailable"]
    desk.later(START + wait_for(20.0) - desk.now - 0.2)
    desk.want()
    assert not desk.take(r.Take)
    desk.later(0.3)
    assert desk.take(r.Settle) == [r.Settle()]
    desk.feed(r.Beaten(desk.now))
    desk.reply()
    assert desk.results() == ["held"]


def test_a_table_that_is_blocked_for_long_is_due_no_earlier() -> None:
    desk = Desk(Timing(lease=60.0))
    desk.open(settled=False, longest=60.0)
    blocked_until = START + wait_for(60.0)
    while desk.now < blocked_until:
        due = desk.table.next_deadline()
        assert desk.now < due <= blocked_until
        desk.later(due - desk.now)
        if desk.take(r.Look):
            desk.feed(r.Looked({}))
    assert desk.take(r.Settle)
