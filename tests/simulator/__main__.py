"""`python -m tests.simulator`: run many schedules, or one of them with its trace."""

from __future__ import annotations

import argparse
import sys
from time import monotonic

from tests.simulator.batch import Failure, failure_of, processes, run_batches, run_one, split
from tests.simulator.plan import PROFILES, profile_of

BATCH = 500


def replay(seed: int, profile: str | None) -> int:
    """Print the trace of one schedule."""
    failure = failure_of(seed, profile)
    if failure is not None:
        print(failure)
        return 1
    cluster = run_one(seed, profile, tracing=True)
    print("\n".join(cluster.referee.trace))
    print(f"every invariant held: profile {profile or profile_of(seed)}, {cluster.now:.1f} virtual seconds")
    return 0


def explore(schedules: int, jobs: int, profile: str | None, first: int) -> int:
    """Run many schedules and print the failures."""
    started_at = monotonic()
    failures: list[Failure] = []
    done = 0
    with processes(jobs) as pool:
        for batch, failure in run_batches(split(first, schedules, BATCH, profile), pool):
            done += batch.count
            if failure is not None:
                failures.append(failure)
            if sys.stderr.isatty():
                print(f"\r{done} schedules", end="", file=sys.stderr, flush=True)
    for failure in failures[:3]:
        print(failure, end="\n\n")
    for failure in failures[3:]:
        print(f"{failure.what} (profile {failure.profile}, seed {failure.seed})")
    seconds = monotonic() - started_at
    print(f"{done} schedules in {seconds:.1f} s ({done / seconds:.0f} a second); {len(failures)} batches failed")
    return 1 if failures else 0


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this schedule, with its trace")
    parser.add_argument("--profile", choices=sorted(PROFILES), help="a family of schedules (default: a mixture)")
    parser.add_argument("--schedules", type=int, default=10_000, help="how many to run")
    parser.add_argument("--first", type=int, default=0, help="the first seed of many")
    parser.add_argument("--jobs", type=int, default=2, help="how many processes")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return replay(arguments.seed, arguments.profile)
    return explore(arguments.schedules, arguments.jobs, arguments.profile, arguments.first)


if __name__ == "__main__":
    sys.exit(main())
