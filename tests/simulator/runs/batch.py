"""One schedule of singleton runs, and the same one again with its trace where it goes wrong."""

from __future__ import annotations

from random import Random

from tests.simulator.batch import Failure
from tests.simulator.referee import InvariantError
from tests.simulator.runs.plan import PROFILES, draw, profile_of
from tests.simulator.runs.referee import RunReferee
from tests.simulator.runs.schedule import Schedule

_WRONG = (InvariantError, AssertionError, AttributeError, LookupError, TypeError, ValueError)


def run_one(
    seed: int, profile: str | None = None, *, tracing: bool = False, referee: RunReferee | None = None
) -> Schedule:
    """Run a schedule.

    Raises:
        InvariantError: an invariant does not hold.
    """
    random = Random(seed)
    plan = draw(PROFILES[profile or profile_of(seed)], random)
    schedule = Schedule(plan, random, referee or RunReferee(tracing))
    schedule.run()
    return schedule


def failure_of(seed: int, profile: str | None = None) -> Failure | None:
    """Run a schedule; if it goes wrong, run it again for its trace and return that."""
    profile = profile or profile_of(seed)
    try:
        run_one(seed, profile)
    except _WRONG as error:
        what = f"{type(error).__name__}: {error}"
    else:
        return None
    referee = RunReferee(True)
    try:
        run_one(seed, profile, referee=referee)
    except _WRONG:
        return Failure(profile, seed, what, tuple(referee.trace), "tests.simulator.runs")
    return Failure(profile, seed, f"{what} (not with a trace: the schedule is not deterministic)")
