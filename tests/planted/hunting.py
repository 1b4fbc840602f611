"""How long the simulators take to find a planted bug."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.planted.bugs import BUGS
from tests.planted.patching import planted
from tests.planted.run_bugs import RUN_BUGS

if TYPE_CHECKING:
    from tests.simulator.batch import Failure

ALL_BUGS = BUGS + RUN_BUGS


@dataclass(frozen=True, slots=True)
class Hunt:
    """What the search for one bug came to."""

    bug: str
    schedules: int
    failure: Failure | None


def hunt(name: str, bound: int) -> Hunt:
    """Plant the bug `name` and run up to `bound` schedules until one goes wrong."""
    bug = next(bug for bug in ALL_BUGS if bug.name == name)
    with planted(bug):
        for seed in range(bound):
            failure = bug.judge(seed, bug.profile)
            if failure is not None:
                return Hunt(name, seed + 1, failure)
    return Hunt(name, bound, None)
