"""The table of one contest: every row of it, what is not in it, and the arithmetic of waiting."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import get_args

import pytest

from celery_highlander.election import protocol as p
from celery_highlander.election.lease import CLOCK_RATE_TOLERANCE, Timing, wait_for
from celery_highlander.errors import ProtocolError

P = p.Phase
NOW = 100.0
TIMING = Timing(lease=6.0, heartbeat_interval=1.0, heartbeat_timeout=2.0, drain_timeout=2.0, kill_margin=0.5)
TERM = p.Term(token=8, lease_deadline=NOW + 6, owed_until=NOW - 1, predecessor=7, cleared=True)
WAITING_TERM = replace(TERM, owed_until=NOW + 3, cleared=False)
BEFORE = p.Predecessor(token=7, heartbeats=4, owed=6.0, stopped=False, same_instance=True)
STOPPED = replace(BEFORE, stopped=True)

CONTESTS = {
    P.STANDBY: p.Contest(P.STANDBY, resting_until=0.0),
    P.BEGINNING: p.Contest(P.BEGINNING, resting_until=0.0),
    P.WAITING: p.Contest(P.WAITING, resting_until=0.0, term=WAITING_TERM),
    P.LEADING: p.Contest(P.LEADING, resting_until=0.0, term=TERM),
    P.STOPPING: p.Contest(P.STOPPING, resting_until=0.0, term=TERM, kill_deadline=NOW + 2),
    P.LOST: p.Contest(P.LOST, resting_until=0.0, term=TERM, kill_deadline=NOW + 2),
    P.RELEASING: p.Contest(P.RELEASING, resting_until=0.0, term=TERM),
}
LATE = NOW + 3.6  # past the instant at which a leader without a renewal has to begin to stop

# (phase, event, when, the phase afterwards, the kinds of its effects)
ROWS: list[tuple[P, p.Event, float, P, tuple[type, ...]]] = [
    (P.STANDBY, p.Campaign(), NOW, P.STANDBY, ()),
    (P.STANDBY, p.Withdraw("asked"), NOW, P.STANDBY, ()),
    (P.STANDBY, p.Sighted(7, 4), NOW, P.STANDBY, ()),
    (P.STANDBY, p.Granted(), NOW, P.BEGINNING, (p.BeginTerm,)),
    (P.STANDBY, p.SessionLost("x"), NOW, P.STANDBY, ()),
    (P.STANDBY, p.Tick(), NOW, P.STANDBY, ()),
    (P.BEGINNING, p.Campaign(), NOW, P.BEGINNING, ()),
    (P.BEGINNING, p.Withdraw("asked"), NOW, P.BEGINNING, ()),
    (P.BEGINNING, p.Begun(8, NOW, BEFORE), NOW, P.WAITING, ()),
    (P.BEGINNING, p.Begun(8, NOW, STOPPED), NOW, P.LEADING, (p.StartWork,)),
    (P.BEGINNING, p.BeginFailed(1.0), NOW, P.RELEASING, (p.Release,)),
    (P.BEGINNING, p.SessionLost("x"), NOW, P.STANDBY, ()),
    (P.BEGINNING, p.Tick(), NOW, P.BEGINNING, ()),
    (P.WAITING, p.Campaign(), NOW, P.WAITING, ()),
    (P.WAITING, p.Withdraw("asked"), NOW, P.RELEASING, (p.Release,)),
    (P.WAITING, p.Renewed(NOW), NOW, P.WAITING, ()),
    (P.WAITING, p.Renewed(NOW + 3), NOW + 3, P.LEADING, (p.StartWork,)),
    (P.WAITING, p.PredecessorStopped(6), NOW, P.WAITING, ()),
    (P.WAITING, p.PredecessorStopped(7), NOW, P.LEADING, (p.StartWork,)),
    (P.WAITING, p.SessionLost("x"), NOW, P.STANDBY, ()),
    (P.WAITING, p.Tick(), NOW, P.WAITING, ()),
    (P.WAITING, p.Tick(), NOW + 3, P.LEADING, (p.StartWork,)),
    (P.WAITING, p.Tick(), LATE, P.WAITING, ()),
    (P.LEADING, p.Campaign(), NOW, P.LEADING, ()),
    (P.LEADING, p.Withdraw("asked"), NOW, P.STOPPING, (p.StopWork,)),
    (P.LEADING, p.Renewed(NOW), NOW, P.LEADING, ()),
    (P.LEADING, p.SessionLost("x"), NOW, P.LOST, (p.StopWork,)),
    (P.LEADING, p.WorkStopped("failed"), NOW, P.RELEASING, (p.Release,)),
    (P.LEADING, p.Tick(), NOW, P.LEADING, ()),
    (P.LEADING, p.Tick(), LATE, P.LOST, (p.StopWork, p.AbandonSession)),
    (P.LEADING, p.Tick(), NOW + 60, P.LOST, (p.StopWork, p.KillWork, p.AbandonSession)),
    (P.STOPPING, p.Campaign(), NOW, P.STOPPING, ()),
    (P.STOPPING, p.Withdraw("again"), NOW, P.STOPPING, ()),
    (P.STOPPING, p.Renewed(NOW), NOW, P.STOPPING, ()),
    (P.STOPPING, p.SessionLost("x"), NOW, P.LOST, (p.StopWork,)),
    (P.STOPPING, p.WorkStopped(), NOW, P.RELEASING, (p.Release,)),
    (P.STOPPING, p.Tick(), NOW, P.STOPPING, ()),
    (P.STOPPING, p.Tick(), NOW + 2, P.STOPPING, (p.KillWork,)),
    (P.STOPPING, p.Tick(), LATE, P.LOST, (p.StopWork, p.KillWork, p.AbandonSession)),
    (P.LOST, p.Campaign(), NOW, P.LOST, ()),
    (P.LOST, p.Withdraw("asked"), NOW, P.LOST, ()),
    (P.LOST, p.SessionLost("x"), NOW, P.LOST, ()),
    (P.LOST, p.WorkStopped(), NOW, P.STANDBY, (p.OweMark,)),
    (P.LOST, p.Tick(), NOW, P.LOST, ()),
    (P.LOST, p.Tick(), NOW + 2, P.LOST, (p.KillWork,)),
    (P.RELEASING, p.Campaign(), NOW, P.RELEASING, ()),
    (P.RELEASING, p.Withdraw("asked"), NOW, P.RELEASING, ()),
    (P.RELEASING, p.Released(), NOW, P.STANDBY, ()),
    (P.RELEASING, p.SessionLost("x"), NOW, P.STANDBY, (p.OweMark,)),
    (P.RELEASING, p.Tick(), NOW, P.RELEASING, ()),
]
SAMPLES: dict[type, p.Event] = {type(event): event for _, event, _, _, _ in ROWS}
ILLEGAL = [(phase, event) for phase in P for event in get_args(p.Event) if (phase, event) not in p.TRANSITIONS]


def step(contest: p.Contest, event: p.Event, now: float = NOW) -> p.Outcome:
    return p.step(contest, event, now, TIMING)


def name_of(value: object) -> str:
    return value.value if isinstance(value, P) else type(value).__name__ if not isinstance(value, float) else str(value)


@pytest.mark.parametrize(("phase", "event", "now", "after", "effects"), ROWS, ids=name_of)
def test_every_row_of_the_table_does_what_it_says(
    phase: P, event: p.Event, now: float, after: P, effects: tuple[type, ...]
) -> None:
    contest, done = step(CONTESTS[phase], event, now)
    assert contest.phase is after
    assert tuple(type(effect) for effect in done) == effects


def test_no_row_of_the_table_is_left_out() -> None:
    assert {(phase, type(event)) for phase, event, _, _, _ in ROWS} == set(p.TRANSITIONS)


@pytest.mark.parametrize(("phase", "kind"), ILLEGAL, ids=lambda value: getattr(value, "value", None) or value.__name__)
def test_an_illegal_pair_raises_and_changes_nothing(phase: P, kind: type) -> None:
    contest = CONTESTS[phase]
    kept = replace(contest)
    with pytest.raises(ProtocolError, match=f"{kind.__name__} cannot happen in phase {phase.value}"):
        step(contest, SAMPLES[kind])
    assert contest == kept


def test_a_move_may_lead_only_where_the_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    table = dict(p.TRANSITIONS)
    move, _ = table[P.STANDBY, p.Granted]
    table[P.STANDBY, p.Granted] = (move, frozenset({P.LEADING}))
    monkeypatch.setattr(p, "TRANSITIONS", table)
    with pytest.raises(ProtocolError, match="led from standby to beginning"):
        step(CONTESTS[P.STANDBY], p.Granted())


# -- how long a predecessor is waited for ------------------------------------------------------------------------------


SEEN = p.Sighting(token=7, heartbeats=4, first_seen_at=NOW - 2)


@pytest.mark.parametrize(
    ("before", "sighting", "wait"),
    [
        (None, None, wait_for(6.0)),
        (None, SEEN, wait_for(6.0)),
        (BEFORE, None, wait_for(6.0)),
        (BEFORE, SEEN, wait_for(6.0) - 2),
        (BEFORE, replace(SEEN, heartbeats=3), wait_for(6.0)),
        (BEFORE, replace(SEEN, token=7 + (1 << 32)), wait_for(6.0)),
        (replace(BEFORE, owed=20.0), SEEN, wait_for(20.0) - 2),
        (replace(BEFORE, owed=3.0), None, wait_for(3.0)),
        (STOPPED, None, 0.0),
        (replace(STOPPED, same_instance=False), SEEN, wait_for(6.0)),
        (replace(BEFORE, same_instance=False), SEEN, wait_for(6.0)),
        (replace(BEFORE, same_instance=False, owed=20.0), SEEN, wait_for(20.0)),
        (replace(BEFORE, same_instance=False, owed=1.0), SEEN, wait_for(6.0)),
    ],
)
def test_a_predecessor_is_waited_for(before: p.Predecessor | None, sighting: p.Sighting | None, wait: float) -> None:
    assert p._owed_until(before, sighting, NOW, TIMING) == pytest.approx(NOW + wait)


def test_a_wait_allows_for_two_clocks_that_drift_apart() -> None:
    assert wait_for(1000.0) * (1 - 5e-4) > 1000.0 * (1 + 5e-4)
    assert wait_for(10.0) == 10.0 * (1 + CLOCK_RATE_TOLERANCE)


def test_a_heartbeat_that_is_seen_again_keeps_the_instant_at_which_it_was_seen_first() -> None:
    once, _ = step(CONTESTS[P.STANDBY], p.Sighted(7, 4), NOW)
    again, _ = step(once, p.Sighted(7, 4), NOW + 1)
    later, _ = step(again, p.Sighted(7, 5), NOW + 2)
    assert again.sighting == p.Sighting(7, 4, NOW)
    assert later.sighting == p.Sighting(7, 5, NOW + 2)


def test_a_mark_cannot_end_the_wait_for_a_term_of_another_instance() -> None:
    contest, _ = step(CONTESTS[P.BEGINNING], p.Begun(8, NOW, replace(BEFORE, same_instance=False)))
    contest, effects = step(contest, p.PredecessorStopped(7), NOW + 1)
    assert contest.phase is P.WAITING
    assert effects == ()


# -- the lease ---------------------------------------------------------------------------------------------------------


def test_a_lease_counts_from_before_the_heartbeat_was_sent_whenever_the_answer_came() -> None:
    contest, _ = step(CONTESTS[P.LEADING], p.Renewed(NOW + 1), NOW + 2.5)
    assert contest.term is not None
    assert contest.term.lease_deadline == NOW + 1 + 6


def test_an_older_heartbeat_never_shortens_a_lease() -> None:
    contest, _ = step(CONTESTS[P.LEADING], p.Renewed(NOW - 5), NOW)
    assert contest.term == TERM


def test_only_a_leader_with_a_lease_may_act() -> None:
    assert {phase for phase, contest in CONTESTS.items() if contest.may_act(NOW)} == {P.LEADING}
    assert CONTESTS[P.LEADING].may_act(NOW + 5.999)
    assert not CONTESTS[P.LEADING].may_act(NOW + 6)
    assert not replace(CONTESTS[P.LEADING], term=None).may_act(NOW)


def test_work_that_lost_its_session_is_killed_before_its_lease_ends() -> None:
    _, effects = step(CONTESTS[P.LEADING], p.SessionLost("x"), NOW)
    assert effects == (p.StopWork(8, "x", NOW + 2),)
    _, effects = step(CONTESTS[P.LEADING], p.SessionLost("x"), NOW + 5)
    assert effects == (p.StopWork(8, "x", NOW + 5.5),)


def test_work_that_was_told_to_stop_has_no_more_time_because_the_session_is_lost() -> None:
    stopping = replace(CONTESTS[P.STOPPING], kill_deadline=NOW + 0.2)
    _, effects = step(stopping, p.SessionLost("x"), NOW)
    assert effects == (p.StopWork(8, "x", NOW + 0.2),)


def test_patient_work_is_not_killed_while_its_session_lives() -> None:
    contest, effects = step(CONTESTS[P.LEADING], p.Withdraw("deploy", patient=True))
    assert effects == (p.StopWork(8, "deploy", None),)
    assert contest.next_deadline(NOW, TIMING) == TIMING.act_deadline(NOW + 6)
    contest, effects = step(contest, p.Withdraw("now"), NOW + 1)
    assert effects == (p.StopWork(8, "now", NOW + 3),)


def test_a_term_whose_wait_is_over_under_a_stale_lease_starts_with_the_next_heartbeat() -> None:
    contest, _ = step(CONTESTS[P.WAITING], p.Tick(), LATE)
    assert contest.next_deadline(LATE, TIMING) == inf
    contest, effects = step(contest, p.Renewed(LATE), LATE + 0.1)
    assert effects == (p.StartWork(8, LATE + 6),)


def test_a_wait_that_ended_a_moment_ago_is_due_at_once() -> None:
    assert CONTESTS[P.WAITING].next_deadline(NOW + 3.01, TIMING) == NOW + 3


# -- marks -------------------------------------------------------------------------------------------------------------


def test_a_term_that_still_waits_leaves_no_mark() -> None:
    contest, effects = step(CONTESTS[P.WAITING], p.Withdraw("asked"))
    assert effects == (p.Release(None, "asked"),)
    assert step(contest, p.SessionLost("x"))[1] == ()
    assert step(CONTESTS[P.WAITING], p.SessionLost("x"))[1] == ()


def test_a_term_that_owed_nothing_leaves_its_mark_though_it_never_acted() -> None:
    waiting = replace(CONTESTS[P.WAITING], term=replace(TERM, cleared=True))
    assert step(waiting, p.Withdraw("asked"))[1] == (p.Release(8, "asked"),)


def test_a_mark_is_left_when_the_work_is_dead_and_not_when_it_is_told() -> None:
    contest, effects = step(CONTESTS[P.LEADING], p.SessionLost("x"))
    assert not any(isinstance(effect, p.OweMark | p.Release) for effect in effects)
    contest, effects = step(contest, p.Tick(), NOW + 2)
    assert effects == (p.KillWork(8, "x"),)
    assert step(contest, p.WorkStopped(), NOW + 2.1)[1] == (p.OweMark(8, "x"),)


# -- taking part -------------------------------------------------------------------------------------------------------


def test_a_node_that_withdrew_does_not_try_until_its_rest_is_over() -> None:
    contest, _ = step(CONTESTS[P.STANDBY], p.Withdraw("asked", rest=5.0))
    assert not contest.wants_lock(NOW + 4.9)
    assert contest.wants_lock(NOW + 5)
    assert step(contest, p.Campaign(), NOW + 1)[0].wants_lock(NOW + 1)
    assert not p.Contest().wants_lock(NOW)


def test_a_lock_that_is_granted_after_a_withdrawal_is_given_back() -> None:
    resting, _ = step(CONTESTS[P.STANDBY], p.Withdraw("asked"))
    assert step(resting, p.Granted())[1] == (p.Release(None, "withdrawn"),)
    resting, _ = step(CONTESTS[P.BEGINNING], p.Withdraw("asked"))
    assert step(resting, p.Begun(8, NOW, STOPPED))[1] == (p.Release(8, "withdrawn"),)
    assert step(resting, p.Begun(8, NOW, BEFORE))[1] == (p.Release(None, "withdrawn"),)


def test_a_term_that_could_not_be_recorded_is_tried_again_after_a_rest() -> None:
    contest, _ = step(CONTESTS[P.BEGINNING], p.BeginFailed(rest=1.5))
    assert contest.resting_until == NOW + 1.5
