"""Many schedules, one after the other or in several processes, and one of them again with its trace."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from random import Random
from typing import TYPE_CHECKING

from celery_highlander.errors import ProtocolError
from tests.simulator.cluster import Cluster
from tests.simulator.plan import PROFILES, draw, profile_of
from tests.simulator.referee import InvariantError, Referee

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Judge = Callable[[int, "str | None"], "Failure | None"]


@dataclass(frozen=True, slots=True)
class Failure:
    """A schedule that broke an invariant."""

    profile: str
    seed: int
    what: str
    trace: tuple[str, ...] = ()
    simulator: str = "tests.simulator"

    def __str__(self) -> str:
        again = f"again: python -m {self.simulator} --profile {self.profile} --seed {self.seed}"
        return "\n".join((*self.trace, self.what, again))


@dataclass(frozen=True, slots=True)
class Batch:
    """Schedules that one process runs: the seeds from `first` on, each under `profile` (None: its own).

    `judge` runs one; that of the election by default.
    """

    first: int
    count: int
    profile: str | None = None
    judge: Judge | None = None


def run_one(seed: int, profile: str | None = None, *, tracing: bool = False, effects_only: bool = False) -> Cluster:
    """Run a schedule; its trace is the referee's.

    Raises:
        InvariantError: an invariant does not hold.
        ProtocolError: an event met a contest that has no move for it.
    """
    random = Random(seed)
    referee = Referee(tracing, effects_only)
    cluster = Cluster(draw(PROFILES[profile or profile_of(seed)], random), random, referee)
    cluster.run()
    return cluster


def failure_of(seed: int, profile: str | None = None, *, effects_only: bool = False) -> Failure | None:
    """Run a schedule; if it goes wrong, run it again for its trace and return that."""
    try:
        run_one(seed, profile, effects_only=effects_only)
    except (InvariantError, ProtocolError, LookupError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
    else:
        return None
    random = Random(seed)
    referee = Referee(True, effects_only)
    profile = profile or profile_of(seed)
    try:
        Cluster(draw(PROFILES[profile], random), random, referee).run()
    except (InvariantError, ProtocolError, LookupError, TypeError, ValueError):
        return Failure(profile, seed, what, tuple(referee.trace))
    return Failure(profile, seed, f"{what} (not with a trace: the schedule is not deterministic)")


def run_batch(batch: Batch) -> Failure | None:
    """Run schedules until one fails; return that one."""
    for seed in range(batch.first, batch.first + batch.count):
        failure = (batch.judge or failure_of)(seed, batch.profile)
        if failure is not None:
            return failure
    return None


def processes(jobs: int) -> ProcessPoolExecutor:
    """Return a pool whose processes start afresh, so that nothing of the caller's leaks into a schedule."""
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))


def run_batches(batches: list[Batch], pool: ProcessPoolExecutor) -> Iterator[tuple[Batch, Failure | None]]:
    """Run batches side by side, and return each one's outcome as it comes."""
    running = {pool.submit(run_batch, batch): batch for batch in batches}
    for future in as_completed(running):
        yield running[future], future.result()


def split(first: int, total: int, size: int, profile: str | None = None, judge: Judge | None = None) -> list[Batch]:
    """Cut `total` schedules into batches of at most `size`."""
    starts = range(first, first + total, size)
    return [Batch(start, min(size, first + total - start), profile, judge) for start in starts]
