"""`python -m tests.simulator.runs`: run many schedules of singleton runs, or one of them with its trace."""

from __future__ import annotations

import argparse
import sys
from time import monotonic

from tests.simulator.batch import Failure, processes, run_batches, split
from tests.simulator.runs.batch import failure_of, run_one
from tests.simulator.runs.plan import PROFILES, profile_of


def replay(seed: int, profile: str | None) -> int:
    """Print the trace of one schedule."""
    failure = failure_of(seed, profile)
    if failure is not None:
        print(failure)
        return 1
    schedule = run_one(seed, profile, tracing=True)
    print("\n".join(schedule.referee.trace))
    print(f"every invariant held: profile {profile or profile_of(seed)}, {schedule.now:.1f} virtual seconds")
    return 0


def explore(schedules: int, jobs: int, profile: str | None, first: int) -> int:
    """Run many schedules and print the failures."""
    started_at = monotonic()
    failures: list[Failure] = []
    done = 0
    with processes(jobs) as pool:
        for batch, failure in run_batches(split(first, schedules, 100, profile, failure_of), pool):
            done += batch.count
            if failure is not None:
                failures.append(failure)
    for failure in failures[:1]:
        print(failure, end="\n\n")
    for failure in failures[1:]:
        print(f"{failure.what} (profile {failure.profile}, seed {failure.seed})")
    seconds = monotonic() - started_at
    print(f"{done} schedules in {seconds:.1f} s ({done / seconds:.0f} a second); {len(failures)} batches failed")
    return 1 if failures else 0


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator.runs", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this schedule, with its trace")
    parser.add_argument("--profile", choices=sorted(PROFILES), help="a family of schedules (default: a mixture)")
    parser.add_argument("--schedules", type=int, default=5_000, help="how many to run")
    parser.add_argument("--first", type=int, default=0, help="the first seed of many")
    parser.add_argument("--jobs", type=int, default=2, help="how many processes")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return replay(arguments.seed, arguments.profile)
    return explore(arguments.schedules, arguments.jobs, arguments.profile, arguments.first)


if __name__ == "__main__":
    sys.exit(main())
