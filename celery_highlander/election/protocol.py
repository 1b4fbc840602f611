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

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from math import inf

from celery_highlander.election.lease import Timing, wait_for
from celery_highlander.errors import ProtocolError


class Phase(Enum):
    """Where a node stands in the contest for one singleton."""

    STANDBY = "standby"  # no lock; wants it unless it rests
    BEGINNING = "beginning"  # has the lock, the term's row is being written
    WAITING = "waiting"  # the term is on record; the predecessor's lease runs out
    LEADING = "leading"  # the work may act
    STOPPING = "stopping"  # the work was told to stop; the lock session lives
    LOST = "lost"  # the work was told to stop; the term is over at the server
    RELEASING = "releasing"  # the work is dead; stopped mark and unlock are under way


HOLDING = frozenset({Phase.WAITING, Phase.LEADING, Phase.STOPPING})
"""The phases whose term is renewed by heartbeats."""

AT_WORK = frozenset({Phase.LEADING, Phase.STOPPING, Phase.LOST})
"""The phases in which work may be running."""


# -- events ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Campaign:
    """The node wants to lead this singleton."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The node gives up leading, and does not try again for `rest` seconds (for good: infinity).

    Patient means that running work may take its time: nothing is killed while the session lives.
    """

    reason: str
    rest: float = inf
    patient: bool = False


@dataclass(frozen=True, slots=True)
class Sighted:
    """A poll showed the row of the current term: `token` and count of `heartbeats`."""

    token: int
    heartbeats: int


@dataclass(frozen=True, slots=True)
class Granted:
    """The server granted the advisory lock to this node's session."""


@dataclass(frozen=True, slots=True)
class Predecessor:
    """The term row as it was when ours replaced it.

    Attributes:
        owed: seconds since its last heartbeat that a successor has to leave it.
        stopped: it left its stopped mark.
        same_instance: it was written on the server instance that we are connected to.
    """

    token: int
    heartbeats: int
    owed: float
    stopped: bool
    same_instance: bool


@dataclass(frozen=True, slots=True)
class Begun:
    """Our term is on record under `token`; the statement was sent at `sent_at` and committed since."""

    token: int
    sent_at: float
    predecessor: Predecessor | None


@dataclass(frozen=True, slots=True)
class BeginFailed:
    """The term could not be recorded, though the session lives: a fenced transaction holds the row, for instance."""

    rest: float


@dataclass(frozen=True, slots=True)
class Renewed:
    """A heartbeat that was sent at `sent_at` renewed our term's row."""

    sent_at: float


@dataclass(frozen=True, slots=True)
class PredecessorStopped:
    """The term `token` left its stopped mark."""

    token: int


@dataclass(frozen=True, slots=True)
class SessionLost:
    """The lock session is gone, or cannot be trusted any more, and with it the lock."""

    reason: str


@dataclass(frozen=True, slots=True)
class WorkStopped:
    """All work of the term is dead: by itself (then `reason` says why), or because it was told to stop."""

    reason: str = ""
    rest: float = 0.0


@dataclass(frozen=True, slots=True)
class Released:
    """The lock is given back."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Campaign
    | Withdraw
    | Sighted
    | Granted
    | Begun
    | BeginFailed
    | Renewed
    | PredecessorStopped
    | SessionLost
    | WorkStopped
    | Released
    | Tick
)


# -- effects -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BeginTerm:
    """Write our term into the row; answer with `Begun` or `BeginFailed`."""


@dataclass(frozen=True, slots=True)
class StartWork:
    """The work may act until `lease_deadline`, which heartbeats move on."""

    token: int
    lease_deadline: float


@dataclass(frozen=True, slots=True)
class StopWork:
    """The work has to stop, and is killed at `kill_deadline` (None: whenever it ends). Answer with `WorkStopped`."""

    token: int
    reason: str
    kill_deadline: float | None


@dataclass(frozen=True, slots=True)
class KillWork:
    """Kill what is left of the work. Answer with `WorkStopped` when it is dead, not when it is told."""

    token: int
    reason: str


@dataclass(frozen=True, slots=True)
class Release:
    """Leave the stopped mark for `mark` (None: leave none), then unlock, then notify. Answer with `Released`."""

    mark: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class OweMark:
    """The session is gone: leave the stopped mark for `token` as soon as there is another one."""

    token: int
    reason: str


@dataclass(frozen=True, slots=True)
class AbandonSession:
    """Close the lock session: the lease ran out under it."""

    reason: str


Effect = BeginTerm | StartWork | StopWork | KillWork | Release | OweMark | AbandonSession


# -- state -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Term:
    """One unbroken spell of holding the lock.

    Attributes:
        lease_deadline: until when this node may act.
        owed_until: until when the predecessor may act.
        predecessor: the token whose stopped mark ends the wait; None where no mark can.
        cleared: this term has acted, or owed nothing; only then may it leave its stopped mark.
    """

    token: int
    lease_deadline: float
    owed_until: float
    predecessor: int | None
    cleared: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Sighting:
    """The last heartbeat that this node saw of somebody's term, and when it saw it first."""

    token: int
    heartbeats: int
    first_seen_at: float


@dataclass(frozen=True, slots=True)
class Contest:
    """The state of one singleton on one node."""

    phase: Phase = Phase.STANDBY
    resting_until: float = inf
    term: Term | None = None
    sighting: Sighting | None = None
    kill_deadline: float | None = None

    def wants_lock(self, now: float) -> bool:
        """Whether the next poll should try for the lock."""
        return self.phase is Phase.STANDBY and now >= self.resting_until

    def may_act(self, now: float) -> bool:
        """Whether the work may act at this instant; in doubt, no."""
        return self.phase is Phase.LEADING and self.term is not None and now < self.term.lease_deadline

    def next_deadline(self, now: float, timing: Timing) -> float:
        """When the next `Tick` is due, in seconds of the boot-time clock; infinity if never."""
        term = self.term
        if term is None:
            return inf
        if self.phase is Phase.WAITING:
            if term.owed_until <= now and now >= timing.act_deadline(term.lease_deadline):
                return inf  # the wait is over, the lease is stale: the next heartbeat's answer decides
            return term.owed_until
        if self.phase is Phase.LEADING:
            return timing.act_deadline(term.lease_deadline)
        if self.phase in (Phase.STOPPING, Phase.LOST):
            act_deadline = timing.act_deadline(term.lease_deadline) if self.phase is Phase.STOPPING else inf
            return min(act_deadline, inf if self.kill_deadline is None else self.kill_deadline)
        return inf


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

Move = Callable[[Contest, "object", float, Timing], Outcome]

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
