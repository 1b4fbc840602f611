"""One node over one lock session: what it sends, when, and which answers it believes."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import pairwise
from math import inf
from random import Random
from typing import TYPE_CHECKING, TypeVar

import pytest

from celery_highlander.election import node as n
from celery_highlander.election import protocol as p
from celery_highlander.election.lease import Timing
from celery_highlander.election.placement import Member

if TYPE_CHECKING:
    from collections.abc import Callable

TIMING = Timing()
START = 1000.0
STOPPED = p.Predecessor(token=7, heartbeats=4, owed=6.0, stopped=True, same_instance=True)
ALIVE = p.Predecessor(token=7, heartbeats=4, owed=6.0, stopped=False, same_instance=True)

E = TypeVar("E")


class Bench:
    """A node, its clock, and what it last asked for."""

    def __init__(
        self, *names: str, priority: int = 0, unmarked: tuple[n.Mark, ...] = (), random: Callable[[], float] = float
    ) -> None:
        self.now = START
        self.node = n.Node(names or ("beat",), TIMING, random, "me", priority, unmarked)
        self.effects: list[n.NodeEffect] = []
        self.heartbeats: list[float] = []
        self.polls: list[tuple[float, n.Poll]] = []

    def feed(self, event: n.NodeEvent, after: float = 0.0) -> Bench:
        self.now += after
        self.effects = self.node.handle(event, self.now)
        return self

    def tell(self, event: p.Campaign | p.Withdraw | p.WorkStopped, name: str = "beat") -> Bench:
        return self.feed(n.To(name, event))

    def connect(self) -> Bench:
        for name in self.node.contests:
            self.tell(p.Campaign(), name)
        return self.feed(n.Connected())

    def poll_answered(self, *granted: str, token: int = 7, members: tuple[Member, ...] | None = None) -> Bench:
        rows = tuple(n.PollRow(name, name in granted, token, 4) for name in self.one(n.Poll).names)
        return self.feed(n.Polled(rows, {}, members))

    def begun(self, before: p.Predecessor | None = STOPPED, token: int = 8) -> Bench:
        names = self.one(n.Begin).names
        return self.feed(n.TermsBegun({name: p.Begun(token, self.now, before) for name in names}))

    def lead(self) -> Bench:
        return self.connect().poll_answered(*self.node.contests).begun()

    def tick(self) -> Bench:
        """Let time pass until the node is due."""
        due = self.node.next_deadline(self.now)
        assert due < inf
        self.now = max(self.now, due)
        return self.feed(p.Tick())

    def live_until(self, *kinds: type, until: float = inf, members: tuple[Member, ...] = ()) -> Bench:
        """Answer every heartbeat and every poll at once, until the node asks for one of `kinds`, or `until`."""
        while self.now < until and not any(isinstance(effect, kinds) for effect in self.effects):
            asked, later = self.effects, []
            for effect in asked:
                self.effects = []
                if isinstance(effect, n.Heartbeat):
                    self.heartbeats.append(self.now)
                    self.feed(n.HeartbeatAnswered(self.now))
                elif isinstance(effect, n.Poll):
                    self.polls.append((self.now, effect))
                    rows = tuple(n.PollRow(name, False, 7, 4) for name in effect.names)
                    self.feed(n.Polled(rows, {}, members if effect.members else None))
                later += self.effects
            self.effects = later
            if not later:
                self.tick()
        return self

    def one(self, kind: type[E]) -> E:
        (found,) = [effect for effect in self.effects if isinstance(effect, kind)]
        return found

    def asked(self, kind: type) -> bool:
        return any(isinstance(effect, kind) for effect in self.effects)

    def phase(self, name: str = "beat") -> p.Phase:
        return self.node.contests[name].phase


def test_a_node_connects_first_and_then_tries_for_every_lock_in_one_statement() -> None:
    bench = Bench("beat", "ledger").tell(p.Campaign())
    assert bench.one(n.OpenSession) == n.OpenSession(1)
    bench = Bench("beat", "ledger").connect()
    poll = bench.one(n.Poll)
    assert poll.names == ("beat", "ledger")
    assert poll.trying == {"beat", "ledger"}


def test_terms_of_one_poll_are_recorded_in_one_statement() -> None:
    bench = Bench("beat", "ledger").connect().poll_answered("beat", "ledger")
    assert bench.one(n.Begin).names == ("beat", "ledger")


def test_work_starts_after_a_stopped_predecessor_at_once_and_is_recorded_as_acting() -> None:
    bench = Bench().lead()
    assert bench.one(n.Start) == n.Start("beat", 8, START + TIMING.lease)
    assert bench.one(n.Heartbeat) == n.Heartbeat({"beat": 8}, frozenset({"beat"}))
    assert bench.node.lease_deadline == START + TIMING.lease


def test_a_waiting_term_is_renewed_but_not_as_acting_and_looks_for_the_mark() -> None:
    bench = Bench().connect().poll_answered("beat").begun(ALIVE)
    assert bench.one(n.Heartbeat) == n.Heartbeat({"beat": 8}, frozenset())
    bench.feed(n.HeartbeatAnswered(bench.now), 0.1).tick()
    assert bench.one(n.Poll) == n.Poll((), frozenset(), {"beat": 7}, members=False)
    assert bench.node.lease_deadline is None
    bench.feed(n.Polled((), {"beat": 7}))
    assert bench.one(n.Start).token == 8


def test_a_standby_is_quiet_but_for_its_polls() -> None:
    bench = Bench().connect().poll_answered()
    assert bench.effects == []
    bench.tick()
    assert [type(effect) for effect in bench.effects] == [n.Poll]
    assert bench.now == START + TIMING.poll_interval


def test_a_notification_makes_a_standby_look_at_once() -> None:
    bench = Bench().connect().poll_answered().feed(n.Notified(), 0.01)
    assert bench.asked(n.Poll)


def test_a_heartbeat_is_sent_one_interval_after_the_sending_of_the_last_one() -> None:
    bench = Bench().lead()
    bench.feed(n.HeartbeatAnswered(START), 0.4)
    bench.live_until(n.Heartbeat)
    assert bench.now == START + TIMING.heartbeat_interval


def test_a_late_answer_extends_the_lease_from_its_sending() -> None:
    bench = Bench().lead().feed(n.HeartbeatAnswered(START + 0.01), 1.9)
    assert bench.node.lease_deadline == START + 0.01 + TIMING.lease


def test_a_heartbeat_without_an_answer_closes_the_session_and_stops_the_work() -> None:
    bench = Bench().lead().feed(p.Tick(), TIMING.heartbeat_timeout)
    assert bench.one(n.CloseSession).reason == "no answer to a heartbeat for 2 s"
    assert bench.one(n.Stop).token == 8
    assert bench.phase() is p.Phase.LOST


def test_a_session_that_is_gone_is_opened_again_after_a_growing_pause() -> None:
    bench = Bench().connect().feed(n.Disconnected("reset"))
    for number, delay in enumerate((*n.RECONNECT_DELAYS, n.RECONNECT_DELAYS[-1]), start=2):
        lost_at = bench.now
        bench.tick()
        assert bench.one(n.OpenSession) == n.OpenSession(number)
        assert bench.now == pytest.approx(lost_at + delay)
        bench.feed(n.ConnectFailed("refused"))


def test_many_nodes_spread_their_tries_to_connect_but_who_leads_does_not_wait() -> None:
    members = tuple(Member(f"n{number}", 0, eligible=True) for number in range(200))
    pauses = {}
    for draw in (0.0, 0.5, 1.0):
        for leads in (False, True):
            bench = Bench(random=partial(float, draw)).connect()
            bench.poll_answered(*bench.node.contests if leads else (), members=members)
            if leads:
                bench.begun()
            bench.feed(n.Disconnected("restart"))
            pauses[leads, draw] = bench.node.next_deadline(bench.now) - bench.now
    first = n.RECONNECT_DELAYS[0]
    assert [pauses[True, draw] for draw in (0.0, 0.5, 1.0)] == pytest.approx([first, first * 1.25, first * 1.5])
    spread = [pauses[False, draw] - pauses[True, draw] for draw in (0.0, 0.5, 1.0)]
    assert spread == pytest.approx([0.0, 100 * n.SPREAD, 200 * n.SPREAD])


def test_two_hundred_nodes_that_lose_their_sessions_at_once_come_back_over_two_seconds() -> None:
    members = tuple(Member(f"n{number}", 0, eligible=True) for number in range(200))
    draws = Random(7)
    planned = []
    for _ in members:
        bench = Bench(random=draws.random).connect().poll_answered(members=members).feed(n.Disconnected("restart"))
        planned.append(bench.node.next_deadline(bench.now) - bench.now)
    tenths = Counter(int(at * 10) for at in planned)
    assert max(tenths.values()) < 25
    assert max(planned) < n.RECONNECT_DELAYS[0] * 1.5 + 200 * n.SPREAD


def test_a_session_that_breaks_soon_after_it_opened_makes_the_next_pause_longer() -> None:
    bench = Bench().connect().feed(n.Disconnected("disk full"))
    for delay in (*n.RECONNECT_DELAYS, n.RECONNECT_DELAYS[-1]):
        lost_at = bench.now
        while not bench.asked(n.OpenSession):
            bench.tick()
        assert bench.now == pytest.approx(lost_at + delay)
        bench.feed(n.Connected()).feed(n.Disconnected("disk full"), 0.1)
    while not bench.asked(n.OpenSession):
        bench.tick()
    bench.feed(n.Connected()).live_until(until=bench.now + n.STEADY_SESSION).feed(n.Disconnected("reset"))
    lost_at = bench.now
    while not bench.asked(n.OpenSession):
        bench.tick()
    assert bench.now == pytest.approx(lost_at + n.RECONNECT_DELAYS[0])


def test_the_mark_of_a_lost_term_is_left_by_the_next_session() -> None:
    bench = Bench().lead().feed(n.Disconnected("reset")).tell(p.WorkStopped())
    assert not bench.node.idle
    while not bench.asked(n.OpenSession):
        bench.tick()
    bench.feed(n.Connected())
    mark = n.Mark("beat", 8, "reset")
    assert bench.one(n.LeaveMarks) == n.LeaveMarks((mark,))
    bench.feed(n.MarksLeft((mark,)))
    assert bench.node.idle


def test_marks_that_were_handed_over_are_left_first() -> None:
    mark = n.Mark("beat", 3, "crash")
    assert Bench(unmarked=(mark,)).connect().one(n.LeaveMarks) == n.LeaveMarks((mark,))


def test_a_step_down_releases_only_after_the_work_is_dead() -> None:
    bench = Bench().lead().tell(p.Withdraw("asked"))
    assert bench.one(n.Stop).kill_deadline == START + TIMING.drain_timeout
    assert not bench.asked(n.ReleaseLock)
    bench.tell(p.WorkStopped())
    assert bench.one(n.ReleaseLock) == n.ReleaseLock("beat", n.Mark("beat", 8, "asked"))
    bench.feed(n.LockReleased("beat"))
    assert bench.phase() is p.Phase.STANDBY
    assert bench.node.leaving


def test_work_that_drains_for_too_long_is_killed() -> None:
    bench = Bench().lead().feed(n.HeartbeatAnswered(START)).tell(p.Withdraw("asked"))
    bench.live_until(n.Kill)
    assert bench.now == START + TIMING.drain_timeout


# -- sessions that are over --------------------------------------------------------------------------------------------


LATE_ANSWERS = [
    n.Polled((n.PollRow("beat", True, 7, 4),), {}),
    n.TermsBegun({"beat": p.Begun(8, START, STOPPED)}),
    n.HeartbeatAnswered(START),
    n.LockReleased("beat"),
    n.MarksLeft(()),
    n.Notified(),
    n.Disconnected("reset"),
]


@pytest.mark.parametrize("answer", LATE_ANSWERS, ids=lambda answer: type(answer).__name__)
def test_an_answer_that_comes_after_its_time_out_is_not_believed(answer: n.NodeEvent) -> None:
    bench = Bench().connect()
    bench.feed(answer, TIMING.heartbeat_timeout + 1)
    assert [type(effect) for effect in bench.effects] == [n.CloseSession]
    assert bench.phase() is p.Phase.STANDBY
    assert not bench.node.connected


def test_a_release_that_is_answered_too_late_counts_as_a_lost_session() -> None:
    bench = Bench().lead().feed(n.HeartbeatAnswered(START)).tell(p.WorkStopped("failed"))
    bench.feed(n.LockReleased("beat"), TIMING.heartbeat_timeout)
    assert bench.phase() is p.Phase.STANDBY
    assert not bench.node.idle  # the mark is left again: nobody knows whether it was


def test_a_session_that_opens_after_it_was_given_up_is_not_believed() -> None:
    bench = Bench().connect().feed(n.Disconnected("reset")).feed(n.Connected())
    assert not bench.node.connected


def test_after_a_pause_the_lease_is_judged_before_any_answer() -> None:
    bench = Bench().lead().feed(n.HeartbeatAnswered(START + 0.1), TIMING.lease + 1)
    assert bench.asked(n.Kill)
    assert bench.phase() is p.Phase.LOST


# -- never in a hurry for nothing --------------------------------------------------------------------------------------


def test_a_node_is_not_due_to_poll_while_a_term_is_being_recorded() -> None:
    bench = Bench().connect().poll_answered("beat").feed(n.Notified())
    assert bench.node.next_deadline(bench.now) == START + TIMING.heartbeat_timeout


def test_a_resting_node_keeps_its_session_alive() -> None:
    bench = Bench().connect().poll_answered().tell(p.Withdraw("asked", rest=60.0))
    bench.live_until(until=START + 30)
    spoken = [START, *bench.heartbeats, START + 30]
    assert max(later - sooner for sooner, later in pairwise(spoken)) < TIMING.lease / 2
    bench.live_until(until=START + 70)
    assert bench.polls[-1][1].trying == {"beat"}


def test_a_withdrawn_node_keeps_its_session_alive() -> None:
    bench = Bench().connect().poll_answered().tell(p.Withdraw("asked"))
    bench.live_until(n.Heartbeat)
    assert bench.now < START + TIMING.lease / 2


# -- several singletons ------------------------------------------------------------------------------------------------


PAIR = (Member("me", 0, eligible=True), Member("other", 0, eligible=True))


def test_locks_beyond_the_share_are_given_back() -> None:
    bench = Bench("a", "b").connect().poll_answered("a", "b", members=PAIR)
    assert bench.one(n.Unlock).names == ("b",)
    assert bench.one(n.Begin).names == ("a",)


def test_what_nobody_leads_is_taken_beyond_the_share() -> None:
    bench = Bench("a", "b").connect().poll_answered("a", members=PAIR).begun()
    bench.live_until(until=START + 8, members=PAIR)
    tried = [at - START for at, poll in bench.polls if "b" in poll.trying]
    patience = TIMING.heartbeat_interval + TIMING.heartbeat_timeout
    assert patience < tried[0] < 2 * patience


def test_all_that_a_silent_node_led_is_taken_at_once_although_it_still_counts_as_a_member() -> None:
    bench = Bench("a", "b").connect().live_until(until=START + TIMING.lease, members=PAIR)
    bench.live_until(n.Poll, members=PAIR).poll_answered("a", "b", members=PAIR)
    assert not bench.asked(n.Unlock)
    assert bench.one(n.Begin).names == ("a", "b")


def test_a_surplus_is_given_away_when_another_node_has_been_there_for_a_while() -> None:
    bench = Bench("a", "b").lead()
    bench.live_until(n.Stop, members=PAIR)
    assert bench.now >= START + n.STEADY_AFTER
    assert bench.one(n.Stop).reason == "spread over the nodes"


def test_a_term_that_cannot_be_recorded_keeps_no_other_from_leading() -> None:
    bench = Bench("a", "b").connect().poll_answered("a", "b")
    bench.feed(n.TermsBegun({"a": p.BeginFailed(1.0), "b": p.Begun(8, bench.now, STOPPED)}))
    assert bench.one(n.ReleaseLock) == n.ReleaseLock("a", None)
    assert bench.one(n.Start).name == "b"


def test_what_there_was_no_room_for_is_tried_for_at_once_when_another_node_is_gone() -> None:
    bench = Bench("a", "b").connect().poll_answered("a", members=PAIR).begun().poll_answered()
    bench.feed(n.Notified())
    assert bench.one(n.Poll) == n.Poll(("b",), frozenset(), {}, members=True)
    bench.poll_answered(members=PAIR[:1])
    assert bench.one(n.Poll).trying == {"b"}


def test_a_node_that_leaves_does_not_look_who_else_is_there() -> None:
    bench = Bench("a", "b").lead()
    for name in ("a", "b"):
        bench.tell(p.Withdraw("worker shutting down"), name)
    assert not bench.feed(n.Notified()).asked(n.Poll)
