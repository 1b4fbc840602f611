"""All contests of one node over its one lock session: what to send and when; pure, it knows no clock and no database.

Feed it events through `handle` and do what it returns, in order; call `handle(Tick())` at `next_deadline()`. The
session is numbered: an answer that belongs to an earlier session must not be fed (`Node.session` tells the current
number).

Every statement that is under way has `heartbeat_timeout` to be answered. A session that misses it is closed and
counts as lost: after a client-side time-out nobody knows what the server did, so nothing about that session is
believed any more.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from celery_highlander.election import protocol as p
from celery_highlander.election.orders import Kind, Order, Orders
from celery_highlander.election.placement import STEADY_AFTER, Placement
from celery_highlander.election.reconnects import RECONNECT_DELAYS, SPREAD, STEADY_SESSION, Reconnects
from celery_highlander.election.statements import (
    Begin,
    CloseSession,
    Connected,
    ConnectFailed,
    Disconnected,
    Heartbeat,
    HeartbeatAnswered,
    Kill,
    LeaveMarks,
    LockReleased,
    Mark,
    MarksLeft,
    NodeEffect,
    NodeEvent,
    Notified,
    OpenSession,
    Poll,
    Polled,
    PollRow,
    ReleaseLock,
    Show,
    Start,
    Stop,
    TermsBegun,
    To,
    Unlock,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from celery_highlander.election.lease import Timing

__all__ = [
    "MEMBERS_INTERVAL",
    "RECONNECT_DELAYS",
    "SPREAD",
    "STEADY_AFTER",
    "STEADY_SESSION",
    "Begin",
    "CloseSession",
    "ConnectFailed",
    "Connected",
    "Disconnected",
    "Heartbeat",
    "HeartbeatAnswered",
    "Kill",
    "Kind",
    "LeaveMarks",
    "LockReleased",
    "Mark",
    "MarksLeft",
    "Node",
    "NodeEffect",
    "NodeEvent",
    "Notified",
    "OpenSession",
    "Order",
    "Poll",
    "PollRow",
    "Polled",
    "ReleaseLock",
    "Show",
    "Start",
    "Stop",
    "TermsBegun",
    "To",
    "Unlock",
]  # what it is told and asks for too: whoever drives a node finds all of it here

MEMBERS_INTERVAL = 5.0
"""Seconds between two looks at who else takes part; a notification makes it look at once."""


class Node:
    """The contests of one node, and its session's schedule."""

    def __init__(
        self,
        names: Iterable[str],
        timing: Timing,
        random: Callable[[], float],
        node: str = "",
        priority: int = 0,
        unmarked: Iterable[Mark] = (),
    ) -> None:
        self.timing = timing
        self.contests: dict[str, p.Contest] = {name: p.Contest() for name in names}
        self.session = 0  # the number of the current, or last, session
        self.connected = False
        self._random = random
        self._connecting = False
        self._reconnects = Reconnects(random)
        self._unmarked: list[Mark] = list(unmarked)
        self._under_way: dict[type | tuple[type, str], float] = {}  # statement -> when it was handed out
        self._renewing: Mapping[str, int] = {}  # the terms of the heartbeat that is under way
        self._heartbeat_at = -inf
        self._poll_at = -inf
        self._members_at = -inf
        self._started_work = False  # since the last heartbeat was handed out
        self._has_runs = False
        self._held_by_others: frozenset[str] = frozenset()  # as the last poll has shown
        self._name = node
        self.orders = Orders(node)
        self._shown = True  # as one that takes part
        self._given_up: set[str] = set()  # by this node's own decision, to which a rest belongs
        self._placement = Placement(len(self.contests), node, priority, patience=self._rest)

    # -- what the outside may ask --------------------------------------------------------------------------------------

    @property
    def lease_deadline(self) -> float | None:
        """Until when everything that acts on this node may act; None where nothing does."""
        deadlines = [c.term.lease_deadline for c in self.contests.values() if c.term and c.phase in p.AT_WORK]
        return min(deadlines) if deadlines else None

    @property
    def idle(self) -> bool:
        """No work, no lock, no mark that is still to be left."""
        return not self._unmarked and all(c.phase is p.Phase.STANDBY for c in self.contests.values())

    @property
    def leaving(self) -> bool:
        """This node wants to lead nothing any more, or not yet."""
        return all(c.resting_until == inf for c in self.contests.values())

    def sightings(self, now: float) -> dict[str, float]:
        """When the last heartbeat of another's term was first seen, by name: of what this node tries for in vain."""
        return {
            name: contest.sighting.first_seen_at
            for name, contest in self.contests.items()
            if self.connected and contest.sighting and name in self._held_by_others and self._wants(name, now)
        }

    def is_steady(self, now: float) -> bool:
        """Whether the session has lived long enough to count as a success."""
        return self.connected and self._reconnects.is_steady(now)

    def next_deadline(self, now: float) -> float:
        """When the next `Tick` is due."""
        due = inf
        for contest in self.contests.values():
            due = min(due, contest.next_deadline(now, self.timing))
        if not self.connected:
            return due if self._connecting else min(due, self._reconnects.due_at)
        if self._under_way:
            due = min(due, min(self._under_way.values()) + self.timing.heartbeat_timeout)
        if Heartbeat not in self._under_way:
            due = min(due, self._heartbeat_at)
        if Poll not in self._under_way and Begin not in self._under_way:
            due = min(due, self._poll_at)
        return due

    # -- the fold ------------------------------------------------------------------------------------------------------

    def renew_for_runs(self, wanted: bool, now: float) -> None:
        """Say whether singleton runs rely on the session: then there is always a heartbeat, which renews its row."""
        if wanted and not self._has_runs and self._heartbeat_at == inf:
            self._heartbeat_at = now
        self._has_runs = wanted

    def handle(self, event: NodeEvent, now: float) -> list[NodeEffect]:
        """Take in `event` at `now`; return what has to be done, in this order."""
        effects: list[NodeEffect] = []
        self._tick(now, effects)  # deadlines first: after a pause nothing else may be believed before them
        if not self._believable(event):
            event = p.Tick()
        match event:
            case p.Tick():
                pass
            case Connected():
                self._connect(now)
            case ConnectFailed() | Disconnected():
                self._disconnect(event.reason, now, effects)
            case Polled():
                self._take_poll(event, now, effects)
            case TermsBegun():
                self._under_way.pop(Begin, None)
                for name, outcome in event.outcomes.items():
                    self._step(name, outcome, now, effects)
                self._heartbeat_at = -inf  # the new terms' first renewal, and the acting ones' record
            case HeartbeatAnswered():
                self._under_way.pop(Heartbeat, None)
                due = now if self._started_work else max(now, event.sent_at + self.timing.heartbeat_interval)
                self._heartbeat_at = due
                for name, token in self._renewing.items():
                    contest = self.contests[name]
                    if contest.phase in p.HOLDING and contest.term and contest.term.token == token:
                        self._step(name, p.Renewed(event.sent_at), now, effects)
            case LockReleased():
                self._under_way.pop((ReleaseLock, event.name), None)
                self._step(event.name, p.Released(), now, effects)
            case MarksLeft():
                self._under_way.pop(LeaveMarks, None)
                self._unmarked = [mark for mark in self._unmarked if mark not in event.marks]
            case Notified():
                self._poll_at = now
                self._members_at = now
            case To():
                self._step(event.name, event.event, now, effects)
        self._schedule(now, effects)
        return effects

    def _believable(self, event: NodeEvent) -> bool:
        """Whether the session that the event tells of is still ours: a deadline may just have closed it."""
        match event:
            case p.Tick() | To():
                return True
            case Connected() | ConnectFailed():
                return self._connecting
            case Disconnected():
                return self.connected or self._connecting
            case _:
                return self.connected

    def _tick(self, now: float, effects: list[NodeEffect]) -> None:
        for name, contest in self.contests.items():
            if contest.next_deadline(now, self.timing) <= now or contest.phase is p.Phase.WAITING:
                self._step(name, p.Tick(), now, effects)
        overdue = [kind for kind, since in self._under_way.items() if now >= since + self.timing.heartbeat_timeout]
        if overdue and self.connected:
            what = "heartbeat" if Heartbeat in overdue else "statement"
            reason = f"no answer to a {what} for {self.timing.heartbeat_timeout:g} s"
            effects.append(CloseSession(reason))
            self._disconnect(reason, now, effects)

    def _step(self, name: str, event: p.Event, now: float, effects: list[NodeEffect]) -> None:
        self.contests[name], outcome = p.step(self.contests[name], event, now, self.timing)
        for effect in outcome:
            match effect:
                case p.BeginTerm():
                    pass  # `_take_poll` records all of a poll's terms at once
                case p.StartWork(token, deadline):
                    self._started_work = True
                    self._heartbeat_at = -inf  # record at once that this term acts
                    effects.append(Start(name, token, deadline))
                case p.StopWork(token, reason, deadline_):
                    effects.append(Stop(name, token, reason, deadline_))
                case p.KillWork(token, reason):
                    effects.append(Kill(name, token, reason))
                case p.Release(mark, reason):
                    self._under_way[ReleaseLock, name] = now
                    left = None if mark is None else Mark(name, mark, reason)
                    effects.append(ReleaseLock(name, left))
                case p.OweMark(token, reason):
                    self._unmarked.append(Mark(name, token, reason))
                case p.AbandonSession(reason):
                    if self.connected:
                        effects.append(CloseSession(reason))
                        self._disconnect(reason, now, effects)

    # -- the session ---------------------------------------------------------------------------------------------------

    def _connect(self, now: float) -> None:
        self._connecting = False
        self.connected = True
        self._reconnects.opened(now)
        self._under_way.clear()
        self._heartbeat_at = now
        self._poll_at = self._members_at = now
        self._placement.connected()
        self._shown = True

    def _disconnect(self, reason: str, now: float, effects: list[NodeEffect]) -> None:
        # Others wait for the mark of who has led.
        self._reconnects.lost(now, len(self._placement.members), hurry=not self.idle)
        self._connecting = self.connected = False
        self._under_way.clear()
        self._placement.disconnected()
        for name in self.contests:
            self._step(name, p.SessionLost(reason), now, effects)

    def _schedule(self, now: float, effects: list[NodeEffect]) -> None:
        self._obey(now, effects)
        if not self.connected:
            if not self._connecting and now >= self._reconnects.due_at:
                self._connecting = True
                self.session += 1
                effects.append(OpenSession(self.session))
            return
        taking_part = not (self.leaving or self.orders.drained)
        if taking_part is not self._shown:
            self._shown = taking_part
            effects.append(Show(taking_part))
        if self._unmarked and LeaveMarks not in self._under_way:
            self._under_way[LeaveMarks] = now
            effects.append(LeaveMarks(tuple(self._unmarked)))
        if now >= self._heartbeat_at and Heartbeat not in self._under_way:
            self._heartbeat(now, effects)
        if now >= self._poll_at and Poll not in self._under_way and Begin not in self._under_way:
            self._poll(now, effects)

    def _heartbeat(self, now: float, effects: list[NodeEffect]) -> None:
        terms = {n: c.term.token for n, c in self.contests.items() if c.term and c.phase in p.HOLDING}
        if not terms and not self._has_runs and self._polls(now):
            self._heartbeat_at = inf  # the polls keep the session alive; a new term sets the time again
            return
        self._under_way[Heartbeat] = now
        self._renewing = terms
        self._started_work = False
        acting = frozenset(n for n in terms if self.contests[n].phase is not p.Phase.WAITING)
        effects.append(Heartbeat(terms, acting, self._has_runs))

    def _polls(self, now: float) -> bool:
        return any(self._wants(name, now) for name in self.contests)

    def _wants(self, name: str, now: float) -> bool:
        return self.contests[name].wants_lock(now) and not self.orders.forbids(name)

    def _poll(self, now: float, effects: list[NodeEffect]) -> None:
        jitter = 1.0 + self._random() / 2
        self._poll_at = now + self.timing.poll_interval * jitter
        names = tuple(name for name in self.contests if self._wants(name, now))
        awaited = {
            n: c.term.predecessor
            for n, c in self.contests.items()
            if c.phase is p.Phase.WAITING and c.term and c.term.predecessor is not None
        }
        members = now >= self._members_at and not self.leaving
        if not (names or awaited or members):
            if self._heartbeat_at == inf:
                self._heartbeat_at = now
            return
        if members:
            self._members_at = now + MEMBERS_INTERVAL
        self._under_way[Poll] = now
        effects.append(Poll(names, self._trying(names, now), awaited, members))

    # -- placement -----------------------------------------------------------------------------------------------------

    @property
    def _held(self) -> int:
        return sum(1 for contest in self.contests.values() if contest.phase is not p.Phase.STANDBY)

    def _overdue(self, name: str, now: float) -> bool:
        sighting = self.contests[name].sighting
        return self._placement.is_overdue(name, sighting.first_seen_at if sighting else None, now)

    def _trying(self, names: tuple[str, ...], now: float) -> frozenset[str]:
        room = self._placement.room(self._held)
        return frozenset(name for name in names if self._may_take(name, room, now))

    def _may_take(self, name: str, room: int, now: float) -> bool:
        belongs_to = self.orders.preferred(name)
        if self._name in belongs_to:
            return True
        has_room = room > 0 or self.orders.hands_on(name)
        free = has_room and not self._placement.is_there(belongs_to)
        return free or self._overdue(name, now)

    def _take_poll(self, event: Polled, now: float, effects: list[NodeEffect]) -> None:
        self._under_way.pop(Poll, None)
        if event.orders is not None and event.orders != self.orders.all:
            self._take_orders(event.orders, now, effects)
        if event.members is not None and self._placement.see(event.members, now):
            self._poll_at = now  # this node's share is another one: what there was no room for is tried for at once
        room = self._placement.room(self._held)
        self._held_by_others = frozenset(row.name for row in event.rows if not row.granted)
        granted, beyond = [], []
        for row in event.rows:
            if self.contests[row.name].phase is not p.Phase.STANDBY:
                continue
            self._placement.unled(row.name, now)
            if row.token is not None:
                self._step(row.name, p.Sighted(row.token, row.heartbeats), now, effects)
            if not row.granted:
                continue
            if self._may_take(row.name, room, now):
                room -= 1
                # What came by an order, or from a preferred node that does not lead it, must not go to and fro.
                self._given_up.discard(row.name)
                ordered = self.orders.hands_on(row.name) or bool(self.orders.preferred(row.name))
                self._placement.taken(row.name, beyond_share=room < 0 or ordered)
                self._step(row.name, p.Granted(), now, effects)
                if self.contests[row.name].phase is p.Phase.BEGINNING:
                    granted.append(row.name)
            else:
                beyond.append(row.name)
        if beyond:
            effects.append(Unlock(tuple(beyond)))
        if granted:
            self._under_way[Begin] = now
            effects.append(Begin(tuple(granted)))
        for name, token in event.stopped.items():
            if self.contests[name].phase is p.Phase.WAITING:
                self._step(name, p.PredecessorStopped(token), now, effects)
        if event.members is not None:
            self._spread(now, effects)

    def _spread(self, now: float, effects: list[NodeEffect]) -> None:
        """Step down from what belongs to another node, and from what exceeds this node's share."""
        leading = [name for name, contest in self.contests.items() if contest.phase is p.Phase.LEADING]
        theirs: list[str] = []
        others: list[str] = []
        for name in leading:
            belongs_to = self.orders.preferred(name)
            if self._name not in belongs_to:
                (theirs if self._placement.is_there(belongs_to) else others).append(name)
        for name in self._placement.movable(theirs, now):
            self._give_up(name, p.Withdraw("another node is preferred", self._rest), now, effects)
        for name in self._placement.surplus(others, self._held, now):
            self._give_up(name, p.Withdraw("spread over the nodes", self._rest), now, effects)

    def _give_up(self, name: str, withdraw: p.Withdraw, now: float, effects: list[NodeEffect]) -> None:
        self._given_up.add(name)
        self._step(name, withdraw, now, effects)

    @property
    def _rest(self) -> float:
        """Seconds for which another node may take what this one has given up."""
        return self.timing.heartbeat_interval + self.timing.heartbeat_timeout

    # -- orders --------------------------------------------------------------------------------------------------------

    def _take_orders(self, orders: tuple[Order, ...], now: float, effects: list[NodeEffect]) -> None:
        self.orders = Orders(self._name, orders)
        self._poll_at = now  # what was forbidden may be allowed now
        for name in self._given_up:  # it was this node's decision to rest from it, which a preference overrules
            if self._name in self.orders.preferred(name) and self.contests[name].resting_until < inf:
                self._step(name, p.Campaign(), now, effects)

    def _obey(self, now: float, effects: list[NodeEffect]) -> None:
        """End the terms that operators want to end; what they forbid is not tried for in the first place."""
        if not self.orders:
            return
        for name, contest in list(self.contests.items()):
            if contest.phase not in p.HOLDING or contest.term is None:
                continue
            order = self.orders.against(name, contest.term.token)
            if order is None or (contest.phase is p.Phase.STOPPING and order.patient):
                continue
            rest = self._rest if order.kind is Kind.STEP_DOWN else 0.0
            self._give_up(name, p.Withdraw(order.reason, rest, order.patient), now, effects)
