"""The list of planted bugs of the election: what each gets wrong, as a small patch of the code that gets it right."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

from celery_highlander.election import node as n
from celery_highlander.election import protocol as p
from celery_highlander.election.lease import Timing, wait_for
from tests.planted.patching import Bug, Soil
from tests.simulator.server import LockServer, Row

P = p.Phase
TOKEN_IN_TIMELINE = 0xFFFFFFFF


# -- the lease ---------------------------------------------------------------------------------------------------------


def _lease_from_the_reply(soil: Soil) -> None:
    renew = p._renew

    def renewed(contest: p.Contest, _event: p.Renewed, now: float, timing: Timing) -> p.Outcome:
        return renew(contest, p.Renewed(now), now, timing)

    for phase in (P.LEADING, P.STOPPING):
        soil.move(phase, p.Renewed, renewed)
    soil.attribute(p, "_renew", renewed)


def _killed_after_the_lease(soil: Soil) -> None:
    def lose(contest: p.Contest, reason: str, _now: float, timing: Timing) -> p.Outcome:
        term = p._term(contest)
        deadline = term.lease_deadline + timing.drain_timeout
        contest = replace(contest, phase=P.LOST, kill_deadline=deadline, term=replace(term, reason=reason))
        return contest, (p.StopWork(term.token, reason, deadline),)

    soil.attribute(p, "_lose", lose)


def _lapse_not_watched(soil: Soil) -> None:
    for phase in (P.LEADING, P.STOPPING):
        soil.move(phase, p.Tick, p._watch_drain)


def _stale_lease_starts_work(soil: Soil) -> None:
    def try_to_lead(contest: p.Contest, _event: p.Event, now: float, _timing: Timing) -> p.Outcome:
        term = p._term(contest)
        if now < term.owed_until:
            return contest, ()
        contest = replace(contest, phase=P.LEADING, term=replace(term, cleared=True))
        return contest, (p.StartWork(term.token, term.lease_deadline),)

    soil.attribute(p, "_try_to_lead", try_to_lead)
    soil.move(P.WAITING, p.Tick, try_to_lead)


def _resumed_after_a_lost_session(soil: Soil) -> None:
    soil.move(P.LEADING, p.SessionLost, p._stay, P.LEADING)


# -- waiting for the predecessor ---------------------------------------------------------------------------------------


def _owed(
    soil: Soil, *, no_row: float = 1.0, instance: bool = True, count: bool = True, seen: bool = True, rate: bool = True
) -> None:
    def owed_until(before: p.Predecessor | None, sighting: p.Sighting | None, now: float, timing: Timing) -> float:
        wait = wait_for if rate else lambda duration: duration
        if before is None:
            return now + no_row * wait(timing.lease)
        if instance and not before.same_instance:
            return now + wait(max(before.owed, timing.lease))
        if before.stopped:
            return now
        known = seen and sighting is not None and sighting.token == before.token
        if known and sighting is not None and (not count or sighting.heartbeats == before.heartbeats):
            return sighting.first_seen_at + wait(before.owed)
        return now + wait(before.owed)

    soil.attribute(p, "_owed_until", owed_until)


def _no_wait_without_a_row(soil: Soil) -> None:
    _owed(soil, no_row=0.0)


def _mark_believed_on_another_instance(soil: Soil) -> None:
    _owed(soil, instance=False)


def _sighting_of_an_earlier_heartbeat(soil: Soil) -> None:
    _owed(soil, count=False)


def _sightings_not_used(soil: Soil) -> None:
    _owed(soil, seen=False)


def _sighting_refreshed_by_every_poll(soil: Soil) -> None:
    def sight(contest: p.Contest, event: p.Sighted, now: float, _timing: Timing) -> p.Outcome:
        return replace(contest, sighting=p.Sighting(event.token, event.heartbeats, now)), ()

    soil.move(P.STANDBY, p.Sighted, sight)


def _clock_rates_ignored(soil: Soil) -> None:
    _owed(soil, rate=False)


def _wait_from_the_heartbeat_before(soil: Soil) -> None:
    def heartbeat_late(self: LockServer, session: Any, heartbeat: n.Heartbeat, sent_at: float) -> n.NodeEvent:
        answer = renew(self, session, heartbeat, sent_at)
        for name in heartbeat.terms if isinstance(answer, n.HeartbeatAnswered) else ():
            row = self.rows[name]
            self.rows[name] = Row(row.token, 0, row.owed, row.instance)
        return answer

    renew = LockServer._renew
    soil.attribute(LockServer, "_renew", heartbeat_late)


# -- debts and marks ---------------------------------------------------------------------------------------------------


def _debt_not_inherited(soil: Soil) -> None:
    soil.attribute(LockServer, "owed", staticmethod(lambda _before, lease: lease))


def _waiting_counts_as_acting(soil: Soil) -> None:
    def heartbeat(self: n.Node, now: float, effects: list[n.NodeEffect]) -> None:
        first = len(effects)
        original(self, now, effects)
        effects[first:] = [
            n.Heartbeat(effect.terms, frozenset(effect.terms)) if isinstance(effect, n.Heartbeat) else effect
            for effect in effects[first:]
        ]

    original = n.Node._heartbeat
    soil.attribute(n.Node, "_heartbeat", heartbeat)


def _mark_of_a_term_that_still_waits(soil: Soil) -> None:
    def give_back(contest: p.Contest, event: p.Withdraw, now: float, timing: Timing) -> p.Outcome:
        contest = replace(contest, term=replace(p._term(contest), cleared=True))
        return original(contest, event, now, timing)

    def forget(contest: p.Contest, _event: p.SessionLost, _now: float, _timing: Timing) -> p.Outcome:
        return replace(contest, phase=P.STANDBY, term=None), (p.OweMark(p._term(contest).token, "lost"),)

    original = p._give_back
    soil.attribute(p, "_give_back", give_back)
    soil.move(P.WAITING, p.Withdraw, give_back)
    soil.move(P.WAITING, p.SessionLost, forget)


def _mark_matched_without_the_timeline(soil: Soil) -> None:
    def marked(self: LockServer, name: str, token: int) -> bool:
        low = token & TOKEN_IN_TIMELINE
        return any(other == name and its & TOKEN_IN_TIMELINE == low for other, its in self.marks)

    soil.attribute(LockServer, "marked", marked)


def _mark_before_the_work_is_dead(soil: Soil) -> None:
    def lose(contest: p.Contest, reason: str, now: float, timing: Timing) -> p.Outcome:
        contest, effects = original(contest, reason, now, timing)
        return contest, (*effects, p.OweMark(p._term(contest).token, reason))

    original = p._lose
    soil.attribute(p, "_lose", lose)


def _told_to_die_counts_as_dead(soil: Soil) -> None:
    def watch_drain(contest: p.Contest, event: p.Tick, now: float, timing: Timing) -> p.Outcome:
        contest, effects = p._watch_drain(contest, event, now, timing)
        if effects:
            contest, owed = p._bury(contest, p.WorkStopped(), now, timing)
            effects = (*effects, *owed)
        return contest, effects

    soil.move(P.LOST, p.Tick, watch_drain, P.STANDBY)
    soil.move(P.STANDBY, p.WorkStopped, p._stay, P.STANDBY)


def _mark_never_left_after_a_lost_session(soil: Soil) -> None:
    def bury(contest: p.Contest, event: p.WorkStopped, now: float, timing: Timing) -> p.Outcome:
        contest, _ = p._bury(contest, event, now, timing)
        return contest, ()

    soil.move(P.LOST, p.WorkStopped, bury)


# -- tokens and heartbeats ---------------------------------------------------------------------------------------------


def _heartbeat_not_by_token(soil: Soil) -> None:
    soil.attribute(LockServer, "unrenewable", lambda _self, _heartbeat: False)


def _token_without_the_timeline(soil: Soil) -> None:
    def next_token(_self: LockServer, row: Row | None, _now: float) -> int:
        return 1 if row is None else row.token + 1

    soil.attribute(LockServer, "next_token", next_token)


# -- the node's schedule -----------------------------------------------------------------------------------------------


def _events_before_deadlines(soil: Soil) -> None:
    def tick(self: Any, now: float, effects: list[n.NodeEffect]) -> None:
        if not self.skips:
            original(self, now, effects)

    def handle(self: Any, event: n.NodeEvent, now: float) -> list[n.NodeEffect]:
        self.skips = not isinstance(event, p.Tick)
        return whole(self, event, now)

    original, whole = n.Node._tick, n.Node.handle
    soil.attribute(n.Node, "_tick", tick)
    soil.attribute(n.Node, "handle", handle)


def _closed_session_still_heard(soil: Soil) -> None:
    soil.attribute(n.Node, "_believable", lambda _self, _event: True)


def _late_answers_believed(soil: Soil) -> None:
    def tick(self: n.Node, now: float, effects: list[n.NodeEffect]) -> None:
        for name, contest in self.contests.items():
            if contest.next_deadline(now, self.timing) <= now or contest.phase is P.WAITING:
                self._step(name, p.Tick(), now, effects)
        for kind, since in list(self._under_way.items()):
            if now >= since + self.timing.heartbeat_timeout:
                del self._under_way[kind]

    soil.attribute(n.Node, "_tick", tick)


def _due_to_poll_while_a_term_begins(soil: Soil) -> None:
    def next_deadline(self: n.Node, now: float) -> float:
        due = original(self, now)
        return min(due, self._poll_at) if self.connected and n.Poll not in self._under_way else due

    original = n.Node.next_deadline
    soil.attribute(n.Node, "next_deadline", next_deadline)


def _resting_node_falls_silent(soil: Soil) -> None:
    def polls(self: n.Node, _now: float) -> bool:
        return any(c.phase is P.STANDBY and c.resting_until < inf for c in self.contests.values())

    soil.attribute(n.Node, "_polls", polls)


def _end_of_the_wait_forgotten(soil: Soil) -> None:
    def next_deadline(self: p.Contest, now: float, timing: Timing) -> float:
        waited = self.phase is P.WAITING and self.term is not None and self.term.owed_until <= now
        return inf if waited else original(self, now, timing)

    original = p.Contest.next_deadline
    soil.attribute(p.Contest, "next_deadline", next_deadline)


def _lock_tried_again_to_verify_it(soil: Soil) -> None:
    def wants_lock(self: p.Contest, now: float) -> bool:
        return self.phase is P.LEADING or (self.phase is P.STANDBY and now >= self.resting_until)

    soil.attribute(p.Contest, "wants_lock", wants_lock)


BUGS: tuple[Bug, ...] = (
    Bug("lease counted from the reply", _lease_from_the_reply),
    Bug("killed at the end of the lease plus the drain", _killed_after_the_lease),
    Bug("a lapsing lease is not watched", _lapse_not_watched),
    Bug("a stale lease starts work", _stale_lease_starts_work, "pauses"),
    Bug("resumed after a lost session", _resumed_after_a_lost_session),
    Bug("no wait where there is no row", _no_wait_without_a_row, "failovers"),
    Bug("mark believed on another instance", _mark_believed_on_another_instance, "failovers"),
    Bug("sighting of an earlier heartbeat counts", _sighting_of_an_earlier_heartbeat, "stalls"),
    Bug("sightings not used", _sightings_not_used, "calm"),
    Bug("sighting refreshed by every poll", _sighting_refreshed_by_every_poll, "calm"),
    Bug("clock rates ignored", _clock_rates_ignored, "clocks"),
    Bug("heartbeats not counted", _wait_from_the_heartbeat_before),
    Bug("debt not inherited", _debt_not_inherited, "leases"),
    Bug("waiting counts as acting", _waiting_counts_as_acting, "leases"),
    Bug("mark of a term that still waits", _mark_of_a_term_that_still_waits),
    Bug("mark matched without the timeline", _mark_matched_without_the_timeline, "failovers"),
    Bug("mark before the work is dead", _mark_before_the_work_is_dead),
    Bug("told to die counts as dead", _told_to_die_counts_as_dead),
    Bug("mark never left after a lost session", _mark_never_left_after_a_lost_session, "calm"),
    Bug("heartbeat not by token", _heartbeat_not_by_token),
    Bug("token without the timeline", _token_without_the_timeline, "failovers"),
    Bug("events believed before deadlines", _events_before_deadlines, "pauses"),
    Bug("a closed session is still heard", _closed_session_still_heard, "pauses"),
    Bug("late answers believed", _late_answers_believed),
    Bug("due to poll while a term begins", _due_to_poll_while_a_term_begins),
    Bug("a resting node falls silent", _resting_node_falls_silent, "faultless"),
    Bug("the end of the wait is forgotten", _end_of_the_wait_forgotten, "calm"),
    Bug("the lock is tried again to verify it", _lock_tried_again_to_verify_it),
)
