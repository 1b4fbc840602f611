"""`python -m tests.planted`: how many schedules it takes to find each planted bug."""

from __future__ import annotations

import argparse
import sys

from tests.planted.hunting import ALL_BUGS, hunt
from tests.simulator.batch import processes


def main() -> int:
    """Hunt all bugs, or one; return 1 if some bug was not found."""
    parser = argparse.ArgumentParser(prog="python -m tests.planted", description=__doc__)
    parser.add_argument("--bug", choices=[bug.name for bug in ALL_BUGS], help="only this one, with its trace")
    parser.add_argument("--bound", type=int, default=60_000, help="how many schedules to try")
    parser.add_argument("--jobs", type=int, default=2, help="how many processes")
    arguments = parser.parse_args()
    if arguments.bug:
        result = hunt(arguments.bug, arguments.bound)
        print(result.failure or f"not found in {result.schedules} schedules")
        return 0 if result.failure else 1
    missed = 0
    with processes(arguments.jobs) as pool:
        names = [bug.name for bug in ALL_BUGS]
        for found in pool.map(hunt, names, [arguments.bound] * len(names)):
            missed += found.failure is None
            what = found.failure.what if found.failure else "NOT FOUND"
            print(f"{found.bug:48} {found.schedules:6}  {what}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
