"""One singleton's contest on one node, as a table: `step(contest, event, now, timing) -> (contest, effects)`.

Theory of operation
===================

The lock is a session advisory lock. The server gives it to one session at a time, but it takes it away without
asking: when the session's connection ends, the next session gets the lock at once, while the work that the lock
guarded may still run. Everything below closes that gap.

**Invariant.** At any instant at most one node of a cluster has work at work for a singleton. A node's work is at
work from `StartWork` until `WorkStopped`.

*A term ends before its lease does.* A leader may act only until `lease_deadline`: the instant **before it sent**
its last confirmed heartbeat, plus the lease. A heartbeat is a write of the term's row by its token, so a confirmed
one proves that at some instant after its sending nobody had begun a later term. Work that was told to stop is
killed `kill_margin` before that deadline; the margin is for the killing, and the configuration is refused unless
heartbeats, drain and margin fit in.

*A successor waits for the lease of its predecessor.* Who gets the lock first writes its own term into the row, and
reads its predecessor there: token, count of heartbeats, and what it is *owed*, the time that a successor has to
leave it. It then waits (heartbeating, so that its own successor finds a living term) until that time has passed
since **this** node first saw the predecessor's last heartbeat. First seen is later than sent, and both durations
are measured on one clock each, so no two clocks are ever compared. Where this node did not see that very heartbeat,
the wait begins now.

*A stopped mark ends the wait.* A term whose work is dead leaves a mark for exactly its token, in the table of
terms. Then nobody waits, and a takeover takes milliseconds.

Three things that look harmless and are not, each found by a model checker:

- A term that ends while it still waits has not paid its predecessor's debt. It leaves no mark, and what it is owed
  is the larger of its own lease and its debt (`Begun.owed`), so that any chain of such terms keeps the first one's
  debt.
- A mark or a sighting counts only for the whole token, and the token leads with the WAL timeline: a mark from
  before a failover that lost rows would otherwise clear a stranger's debt.
- After the server instance changed, rows may be missing. A mark then proves nothing about terms whose rows are
  lost, and the wait is the whole lease from now, whatever the row says. The same holds where there is no row at
  all.

A lost session ends the term; it is never resumed, not even by the node that held it.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

from celery_highlander.election.contest import (
    AT_WORK,
    HOLDING,
    AbandonSession,
    BeginFailed,
    BeginTerm,
    Begun,
    Campaign,
    Contest,
    Effect,
    Event,
    Granted,
    KillWork,
    OweMark,
    Phase,
    Predecessor,
    PredecessorStopped,
    Release,
    Released,
    Renewed,
    SessionLost,
    Sighted,
    Sighting,
    StartWork,
    StopWork,
    Term,
    Tick,
    Withdraw,
    WorkStopped,
)
from celery_highlander.election.lease import Timing, wait_for
from celery_highlander.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "AT_WORK",
    "HOLDING",
    "TRANSITIONS",
    "AbandonSession",
    "BeginFailed",
    "BeginTerm",
    "Begun",
    "Campaign",
    "Contest",
    "Effect",
    "Event",
    "Granted",
    "KillWork",
    "Outcome",
    "OweMark",
    "Phase",
    "Predecessor",
    "PredecessorStopped",
    "Release",
    "Released",
    "Renewed",
    "SessionLost",
    "Sighted",
    "Sighting",
    "StartWork",
    "StopWork",
    "Term",
    "Tick",
    "Withdraw",
    "WorkStopped",
    "step",
]  # the values too: whoever speaks this protocol finds all of its words here

# -- the moves ---------------------------------------------------------------------------------------------------------

Outcome = tuple[Contest, tuple[Effect, ...]]


def _term(contest: Contest) -> Term:
    if contest.term is None:
        raise ProtocolError(f"a contest in phase {contest.phase.value} without a term")
    return contest.term


def _campaign(contest: Contest, event: Campaign, now: float, timing: Timing) -> Outcome:
    return replace(contest, resting_until=now), ()


def _rest(contest: Contest, event: Withdraw, now: float, timing: Timing) -> Outcome:
    return replace(contest, resting_until=max(contest.resting_until, now + event.rest)), ()


def _stay(contest: Contest, event: Event, now: float, timing: Timing) -> Outcome:
    return contest, ()


def _sight(contest: Contest, event: Sighted, now: float, timing: Timing) -> Outcome:
    old = contest.sighting
    if old is not None and old.token == event.token and old.heartbeats == event.heartbeats:
        return contest, ()  # the same heartbeat again: what counts is when it was seen first
    return replace(contest, sighting=Sighting(event.token, event.heartbeats, now)), ()


def _begin(contest: Contest, event: Granted, now: float, timing: Timing) -> Outcome:
    if contest.resting_until > now:  # withdrew while the poll was under way
        return replace(contest, phase=Phase.RELEASING), (Release(None, "withdrawn"),)
    return replace(contest, phase=Phase.BEGINNING), (BeginTerm(),)


def _owed_until(before: Predecessor | None, sighting: Sighting | None, now: float, timing: Timing) -> float:
    if before is None:
        return now + wait_for(timing.lease)  # no row: none ever, or one that was lost
    if not before.same_instance:
        return now + wait_for(max(before.owed, timing.lease))  # rows may be lost, stopped mark or not
    if before.stopped:
        return now
    if sighting is not None and (sighting.token, sighting.heartbeats) == (before.token, before.heartbeats):
        return sighting.first_seen_at + wait_for(before.owed)
    return now + wait_for(before.owed)


def _record(contest: Contest, event: Begun, now: float, timing: Timing) -> Outcome:
    before = event.predecessor
    owed_until = _owed_until(before, contest.sighting, now, timing)
    term = Term(
        token=event.token,
        lease_deadline=event.sent_at + timing.lease,
        owed_until=owed_until,
        predecessor=before.token if before is not None and before.same_instance else None,
        cleared=owed_until <= now,
    )
    contest = replace(contest, phase=Phase.WAITING, term=term, sighting=None)
    if contest.resting_until > now:  # withdrew while the row was being written
        return _give_back(contest, Withdraw("withdrawn", rest=0.0), now, timing)
    return _try_to_lead(contest, event, now, timing)


def _try_to_lead(contest: Contest, event: Event, now: float, timing: Timing) -> Outcome:
    term = _term(contest)
    if not term.owed_until <= now < timing.act_deadline(term.lease_deadline):
        return contest, ()  # a stale lease does not start work either: the next heartbeat decides
    contest = replace(contest, phase=Phase.LEADING, term=replace(term, cleared=True))
    return contest, (StartWork(term.token, term.lease_deadline),)


def _skip_wait(contest: Contest, event: PredecessorStopped, now: float, timing: Timing) -> Outcome:
    term = _term(contest)
    if event.token != term.predecessor:
        return contest, ()
    contest = replace(contest, term=replace(term, owed_until=min(now, term.owed_until), cleared=True))
    return _try_to_lead(contest, event, now, timing)


def _renew(contest: Contest, event: Renewed, now: float, timing: Timing) -> Outcome:
    term = _term(contest)
    deadline = max(term.lease_deadline, event.sent_at + timing.lease)
    return replace(contest, term=replace(term, lease_deadline=deadline)), ()


def _renew_and_try(contest: Contest, event: Renewed, now: float, timing: Timing) -> Outcome:
    contest, _ = _renew(contest, event, now, timing)
    return _try_to_lead(contest, event, now, timing)


def _unlock(contest: Contest, event: BeginFailed, now: float, timing: Timing) -> Outcome:
    resting_until = max(contest.resting_until, now + event.rest)
    return replace(contest, phase=Phase.RELEASING, resting_until=resting_until), (Release(None, "term not recorded"),)


def _give_back(contest: Contest, event: Withdraw, now: float, timing: Timing) -> Outcome:
    """Leave a term that never acted: with its mark only if it owed nothing."""
    term = _term(contest)
    resting_until = max(contest.resting_until, now + event.rest)
    contest = replace(contest, phase=Phase.RELEASING, resting_until=resting_until)
    return contest, (Release(term.token if term.cleared else None, event.reason),)


def _forget(contest: Contest, event: SessionLost, now: float, timing: Timing) -> Outcome:
    return replace(contest, phase=Phase.STANDBY, term=None), ()


def _step_down(contest: Contest, event: Withdraw, now: float, timing: Timing) -> Outcome:
    term = _term(contest)
    deadline = None if event.patient else now + timing.drain_timeout
    contest = replace(
        contest,
        phase=Phase.STOPPING,
        resting_until=max(contest.resting_until, now + event.rest),
        kill_deadline=deadline,
        term=replace(term, reason=event.reason),
    )
    return contest, (StopWork(term.token, event.reason, deadline),)


def _hurry(contest: Contest, event: Withdraw, now: float, timing: Timing) -> Outcome:
    """A second request to step down can only bring the killing nearer."""
    term = _term(contest)
    resting_until = max(contest.resting_until, now + event.rest)
    contest = replace(contest, resting_until=resting_until)
    if event.patient or contest.kill_deadline is not None:
        return contest, ()
    deadline = now + timing.drain_timeout
    return replace(contest, kill_deadline=deadline), (StopWork(term.token, event.reason, deadline),)


def _lose(contest: Contest, reason: str, now: float, timing: Timing) -> Outcome:
    term = _term(contest)
    deadline = min(now + timing.drain_timeout, timing.kill_deadline(term.lease_deadline))
    if contest.kill_deadline is not None:
        deadline = min(deadline, contest.kill_deadline)
    contest = replace(contest, phase=Phase.LOST, kill_deadline=deadline, term=replace(term, reason=reason))
    return contest, (StopWork(term.token, reason, deadline),)


def _lose_session(contest: Contest, event: SessionLost, now: float, timing: Timing) -> Outcome:
    return _lose(contest, event.reason, now, timing)


def _watch_lease(contest: Contest, event: Tick, now: float, timing: Timing) -> Outcome:
    term = _term(contest)
    if now < timing.act_deadline(term.lease_deadline):
        return _watch_drain(contest, event, now, timing)
    contest, effects = _lose(contest, "lease not renewed in time", now, timing)
    contest, killing = _watch_drain(contest, event, now, timing)
    return contest, (*effects, *killing, AbandonSession("lease not renewed in time"))


def _watch_drain(contest: Contest, event: Tick, now: float, timing: Timing) -> Outcome:
    if contest.kill_deadline is None or now < contest.kill_deadline:
        return contest, ()
    term = _term(contest)
    return replace(contest, kill_deadline=inf), (KillWork(term.token, term.reason),)


def _finish(contest: Contest, event: WorkStopped, now: float, timing: Timing) -> Outcome:
    term = _term(contest)
    resting_until = max(contest.resting_until, now + event.rest)
    contest = replace(contest, phase=Phase.RELEASING, resting_until=resting_until, kill_deadline=None)
    return contest, (Release(term.token, event.reason or term.reason),)


def _bury(contest: Contest, event: WorkStopped, now: float, timing: Timing) -> Outcome:
    term = _term(contest)
    resting_until = max(contest.resting_until, now + event.rest)
    contest = replace(contest, phase=Phase.STANDBY, resting_until=resting_until, term=None, kill_deadline=None)
    return contest, (OweMark(term.token, term.reason),)


def _end(contest: Contest, event: Released, now: float, timing: Timing) -> Outcome:
    return replace(contest, phase=Phase.STANDBY, term=None), ()


def _owe(contest: Contest, event: SessionLost, now: float, timing: Timing) -> Outcome:
    term = contest.term
    contest = replace(contest, phase=Phase.STANDBY, term=None)
    return contest, (OweMark(term.token, term.reason),) if term is not None and term.cleared else ()


# -- the table ---------------------------------------------------------------------------------------------------------

_P = Phase
TRANSITIONS: Mapping[tuple[Phase, type], tuple[Callable[..., Outcome], frozenset[Phase]]] = {
    (phase, event): (move, frozenset(outcomes))
    for phase, event, move, outcomes in (
        (_P.STANDBY, Campaign, _campaign, {_P.STANDBY}),
        (_P.STANDBY, Withdraw, _rest, {_P.STANDBY}),
        (_P.STANDBY, Sighted, _sight, {_P.STANDBY}),
        (_P.STANDBY, Granted, _begin, {_P.BEGINNING, _P.RELEASING}),
        (_P.STANDBY, SessionLost, _stay, {_P.STANDBY}),
        (_P.STANDBY, Tick, _stay, {_P.STANDBY}),
        (_P.BEGINNING, Campaign, _campaign, {_P.BEGINNING}),
        (_P.BEGINNING, Withdraw, _rest, {_P.BEGINNING}),
        (_P.BEGINNING, Begun, _record, {_P.WAITING, _P.LEADING, _P.RELEASING}),
        (_P.BEGINNING, BeginFailed, _unlock, {_P.RELEASING}),
        (_P.BEGINNING, SessionLost, _forget, {_P.STANDBY}),
        (_P.BEGINNING, Tick, _stay, {_P.BEGINNING}),
        (_P.WAITING, Campaign, _campaign, {_P.WAITING}),
        (_P.WAITING, Withdraw, _give_back, {_P.RELEASING}),
        (_P.WAITING, Renewed, _renew_and_try, {_P.WAITING, _P.LEADING}),
        (_P.WAITING, PredecessorStopped, _skip_wait, {_P.WAITING, _P.LEADING}),
        (_P.WAITING, SessionLost, _forget, {_P.STANDBY}),
        (_P.WAITING, Tick, _try_to_lead, {_P.WAITING, _P.LEADING}),
        (_P.LEADING, Campaign, _stay, {_P.LEADING}),
        (_P.LEADING, Withdraw, _step_down, {_P.STOPPING}),
        (_P.LEADING, Renewed, _renew, {_P.LEADING}),
        (_P.LEADING, SessionLost, _lose_session, {_P.LOST}),
        (_P.LEADING, WorkStopped, _finish, {_P.RELEASING}),
        (_P.LEADING, Tick, _watch_lease, {_P.LEADING, _P.LOST}),
        (_P.STOPPING, Campaign, _campaign, {_P.STOPPING}),
        (_P.STOPPING, Withdraw, _hurry, {_P.STOPPING}),
        (_P.STOPPING, Renewed, _renew, {_P.STOPPING}),
        (_P.STOPPING, SessionLost, _lose_session, {_P.LOST}),
        (_P.STOPPING, WorkStopped, _finish, {_P.RELEASING}),
        (_P.STOPPING, Tick, _watch_lease, {_P.STOPPING, _P.LOST}),
        (_P.LOST, Campaign, _campaign, {_P.LOST}),
        (_P.LOST, Withdraw, _rest, {_P.LOST}),
        (_P.LOST, SessionLost, _stay, {_P.LOST}),
        (_P.LOST, WorkStopped, _bury, {_P.STANDBY}),
        (_P.LOST, Tick, _watch_drain, {_P.LOST}),
        (_P.RELEASING, Campaign, _campaign, {_P.RELEASING}),
        (_P.RELEASING, Withdraw, _rest, {_P.RELEASING}),
        (_P.RELEASING, Released, _end, {_P.STANDBY}),
        (_P.RELEASING, SessionLost, _owe, {_P.STANDBY}),
        (_P.RELEASING, Tick, _stay, {_P.RELEASING}),
    )
}
"""(phase, event) -> (move, the phases that it may lead to). A pair that is not here cannot happen."""


def step(contest: Contest, event: Event, now: float, timing: Timing) -> Outcome:
    """Return the contest after `event` at `now` (boot-time clock, seconds), and what has to be done.

    Raises:
        ProtocolError: the event cannot happen in this phase; nothing is changed.
    """
    entry = TRANSITIONS.get((contest.phase, type(event)))
    if entry is None:
        raise ProtocolError(f"{type(event).__name__} cannot happen in phase {contest.phase.value}")
    move, outcomes = entry
    after, effects = move(contest, event, now, timing)
    if after.phase not in outcomes:
        raise ProtocolError(f"{type(event).__name__} led from {contest.phase.value} to {after.phase.value}")
    return after, effects
