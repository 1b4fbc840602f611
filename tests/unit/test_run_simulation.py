"""Thousands of schedules of singleton runs with faults."""

from __future__ import annotations

import os
from collections import Counter
from random import Random

import pytest

from tests.simulator.batch import processes, run_batches, split
from tests.simulator.runs.batch import failure_of, run_one
from tests.simulator.runs.plan import PROFILES, draw

SCHEDULES = int(os.environ.get("HIGHLANDER_SCHEDULES", "15000")) // 5
"""One of them takes five times as long as one of the election."""


@pytest.mark.timeout(900)
def test_no_schedule_breaks_an_invariant() -> None:
    done = 0
    with processes(os.cpu_count() or 1) as pool:
        for batch, failure in run_batches(split(0, SCHEDULES, 250, judge=failure_of), pool):
            assert failure is None, str(failure)
            done += batch.count
    print(f"{done} schedules")
    assert done == SCHEDULES


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_a_schedule_runs_the_same_way_again(profile: str) -> None:
    once = run_one(1, profile, tracing=True)
    assert once.referee.trace == run_one(1, profile, tracing=True).referee.trace
    assert once.now == run_one(1, profile).now


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_every_schedule_of_a_profile_has_timings_that_fit_their_lease(profile: str) -> None:
    for seed in range(200):
        for machine in draw(PROFILES[profile], Random(seed)).machines:
            assert machine.timing.needed <= machine.timing.lease


def test_schedules_come_to_every_answer_and_lose_runs_that_go_on() -> None:
    answers: Counter[str] = Counter()
    lost = 0
    for seed in range(80):
        referee = run_one(seed, tracing=True).referee
        answers.update(referee.results)
        lost += sum("KillRun" in line or "kills itself" in line for line in referee.trace)
    assert min(answers[result] for result in ("held", "busy", "unavailable")) > 50
    assert lost > 20
