"""The list of planted bugs of the election: what each gets wrong, as a small patch of the code that gets it right."""

from __future__ import annotations

from dataclasses import replace
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

    def renewed(contest: p.Contest, event: p.Renewed, now: float, timing: Timing) -> p.Outcome:
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
    def owed_until(
        before: p.Predecessor | None, sighting: p.Sighting | None, now: float, timing: Timing
    ) -> float:
        wait = wait_for if rate else lambda duration: duration
        if before is None:
            return now + no_row * wait(timing.lease)
        if instance and not before.same_instance:
            return now + wait(max(before.owed, timing.lease))
        if before.stopped:
            return now
        if seen and sighting is not None and sighting.token == before.token:
            if not count or sighting.heartbeats == before.heartbeats:
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
    def tick(self: n.Node, now: float, effects: list[n.NodeEffect]) -> None:
        if not effects and getattr(self, "_late_tick", True):
            return
        original(self, now, effects)

    def handle(self: n.Node, event: n.NodeEvent, now: float) -> list[n.NodeEffect]:
        if isinstance(event, p.Tick):
            with_ticks = Soil.__new__(Soil)
            del with_ticks
        return whole(self, event, now)

    original, whole = n.Node._tick, n.Node.handle
    soil.attribute(n.Node, "_tick", tick)
    soil.attribute(n.Node, "handle", handle)


BUGS: tuple[Bug, ...] = ()
