"""A hundred thousand schedules of a cluster with faults, and one contest under any sequence of events."""

from __future__ import annotations

import os
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from celery_highlander.election import protocol as p
from celery_highlander.election.lease import Timing
from celery_highlander.errors import ProtocolError
from tests.simulator.batch import failure_of, processes, run_batches, run_one, split
from tests.simulator.plan import PROFILES, draw

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import ProcessPoolExecutor

SCHEDULES = int(os.environ.get("HIGHLANDER_SCHEDULES", "15000"))
JOBS = os.cpu_count() or 1
EXAMPLES = 20
PER_EXAMPLE = -(-SCHEDULES // EXAMPLES)


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with processes(JOBS) as running:
        yield running


@pytest.mark.timeout(900)
def test_no_schedule_breaks_an_invariant(pool: ProcessPoolExecutor) -> None:
    done = 0

    # A seed that was found is replayed by the simulator itself: there is nothing that shrinking could add.
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.integers(0, 1 << 40), profile=st.sampled_from([None, None, *sorted(PROFILES)]))
    def explore(seed: int, profile: str | None) -> None:
        nonlocal done
        for batch, failure in run_batches(split(seed, PER_EXAMPLE, 500, profile), pool):
            assert failure is None, str(failure)
            done += batch.count

    explore()
    print(f"{done} schedules")
    assert done >= SCHEDULES


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_a_schedule_runs_the_same_way_again(profile: str) -> None:
    for seed in range(3):
        once = run_one(seed, profile, tracing=True)
        again = run_one(seed, profile, tracing=True)
        assert once.referee.trace == again.referee.trace
        assert once.now == run_one(seed, profile).now
        assert failure_of(seed, profile) is None


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_every_schedule_of_a_profile_has_timings_that_fit_their_lease(profile: str) -> None:
    for seed in range(200):
        for machine in draw(PROFILES[profile], Random(seed)).machines:
            assert machine.timing.needed <= machine.timing.lease


def test_schedules_reach_every_phase_and_more_than_one_election() -> None:
    elections = [len(run_one(seed).referee.elections) for seed in range(300)]
    assert sum(1 for count in elections if count >= 2) > 150
    traces = "\n".join(line for seed in range(100) for line in run_one(seed, tracing=True).referee.trace)
    for phase in p.Phase:
        assert f"-> {phase.value}" in traces


class AnyContest(RuleBasedStateMachine):
    """One contest whose driver answers what it was asked, or not, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.timing = Timing()
        self.now = 1000.0
        self.contest = p.Contest()
        self.alive: int | None = None  # the token of the work that is at work
        self.marked: set[int] = set()
        self.token = 0

    def feed(self, event: p.Event) -> None:
        before = self.contest
        legal = (before.phase, type(event)) in p.TRANSITIONS
        try:
            self.contest, effects = p.step(before, event, self.now, self.timing)
        except ProtocolError:
            assert not legal
            assert self.contest is before
            return
        assert legal
        for effect in effects:
            self.take(effect)

    def take(self, effect: p.Effect) -> None:
        match effect:
            case p.StartWork(token, lease_deadline):
                assert self.alive is None
                assert self.now < self.timing.act_deadline(lease_deadline)
                self.alive = token
            case p.StopWork(token, _, kill_deadline) if kill_deadline is not None:
                assert token == self.alive
                assert self.contest.term is not None
                if self.contest.phase is p.Phase.LOST:
                    assert kill_deadline <= self.timing.kill_deadline(self.contest.term.lease_deadline)
            case p.KillWork(token):
                assert token == self.alive
            case p.Release(mark) | p.OweMark(mark):
                assert self.alive is None
                if mark is not None:
                    self.marked.add(mark)
            case _:
                pass

    @rule(seconds=st.sampled_from([0.01, 0.5, 1.0, 2.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.feed(p.Tick())

    @rule(
        event=st.sampled_from(
            [p.Campaign(), p.Withdraw("asked", rest=0.0), p.Withdraw("asked"), p.Withdraw("asked", 1.0, patient=True)]
        )
    )
    def asked_from_outside(self, event: p.Event) -> None:
        self.feed(event)

    @rule()
    def session_lost(self) -> None:
        self.feed(p.SessionLost("lost"))

    @rule(token=st.integers(1, 4), heartbeats=st.integers(0, 2))
    def sighted(self, token: int, heartbeats: int) -> None:
        self.feed(p.Sighted(token, heartbeats))

    @rule()
    def granted(self) -> None:
        self.feed(p.Granted())

    @rule(
        late=st.sampled_from([0.0, 0.1, 3.0, 7.0]),
        owed=st.sampled_from([3.0, 6.0]),
        stopped=st.booleans(),
        same_instance=st.booleans(),
        known=st.booleans(),
    )
    def begun(self, late: float, owed: float, stopped: bool, same_instance: bool, known: bool) -> None:
        before = p.Predecessor(self.token, 1, owed, stopped, same_instance) if known else None
        self.token += 1
        self.feed(p.Begun(self.token, self.now - late, before))

    @rule()
    def begin_failed(self) -> None:
        self.feed(p.BeginFailed(1.0))

    @rule(late=st.sampled_from([0.0, 0.1, 2.0, 7.0]))
    def renewed(self, late: float) -> None:
        self.feed(p.Renewed(self.now - late))

    @rule(back=st.integers(0, 2))
    def predecessor_stopped(self, back: int) -> None:
        self.feed(p.PredecessorStopped(self.token - back))

    @precondition(lambda self: self.alive is not None)
    @rule(reason=st.sampled_from(["", "failed"]))
    def work_stopped(self, reason: str) -> None:
        self.alive = None
        self.feed(p.WorkStopped(reason))

    @rule()
    def released(self) -> None:
        self.feed(p.Released())

    @invariant()
    def work_lives_only_in_the_phases_that_have_work(self) -> None:
        assert (self.alive is not None) == (self.contest.phase in p.AT_WORK)

    @invariant()
    def only_a_leader_within_its_lease_may_act(self) -> None:
        if self.contest.may_act(self.now):
            assert self.contest.phase is p.Phase.LEADING
            assert self.contest.term is not None
            assert self.contest.term.token == self.alive
            assert self.now < self.contest.term.lease_deadline

    @invariant()
    def a_term_in_hand_has_no_mark_before_it_ends(self) -> None:
        if self.contest.phase in p.HOLDING and self.contest.term is not None:
            assert self.contest.term.token not in self.marked

    @invariant()
    def a_term_is_known_exactly_while_it_lasts(self) -> None:
        if self.contest.phase in p.HOLDING | p.AT_WORK:
            assert self.contest.term is not None
        if self.contest.phase in (p.Phase.STANDBY, p.Phase.BEGINNING):
            assert self.contest.term is None

    @invariant()
    def a_deadline_that_is_due_does_something(self) -> None:
        if self.contest.next_deadline(self.now, self.timing) <= self.now:
            after, effects = p.step(self.contest, p.Tick(), self.now, self.timing)
            assert effects
            assert after.next_deadline(self.now, self.timing) > self.now


TestAnyContest = AnyContest.TestCase
TestAnyContest.settings = settings(max_examples=200, stateful_step_count=40, deadline=None, derandomize=True)
