"""Every planted bug makes its simulator go red, and nothing is left of it afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from celery_highlander.election import node as n
from celery_highlander.election import protocol as p
from celery_highlander.election.lease import Timing
from celery_highlander.keeper import run_table as r
from tests.planted.hunting import ALL_BUGS, Hunt, hunt
from tests.planted.patching import Bug, planted
from tests.simulator.batch import processes
from tests.simulator.runs.database import RunSession
from tests.simulator.server import LockServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future, ProcessPoolExecutor

BOUND = 60_000


@pytest.fixture(scope="module")
def hunts() -> Iterator[dict[str, Future[Hunt]]]:
    """All hunts, side by side."""
    pool: ProcessPoolExecutor = processes(2)
    try:
        yield {bug.name: pool.submit(hunt, bug.name, BOUND) for bug in ALL_BUGS}
    finally:
        pool.shutdown(cancel_futures=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [bug.name for bug in ALL_BUGS])
def test_the_simulator_finds_the_bug(name: str, hunts: dict[str, Future[Hunt]]) -> None:
    found = hunts[name].result()
    assert found.failure is not None, f"{name}: {found.schedules} schedules without a violation"
    print(f"{name}: found by schedule {found.schedules}: {found.failure.what}")


@pytest.mark.parametrize("bug", ALL_BUGS, ids=[bug.name for bug in ALL_BUGS])
def test_nothing_of_a_bug_is_left_when_it_is_pulled_out(bug: Bug) -> None:
    owners = (p, n.Node, p.Contest, Timing, LockServer, r, r.RunTable, RunSession)
    before = [dict(vars(owner)) for owner in owners]
    table = dict(p.TRANSITIONS)
    with planted(bug):
        assert [dict(vars(owner)) for owner in owners] != before or dict(p.TRANSITIONS) != table
    assert [dict(vars(owner)) for owner in owners] == before
    assert dict(p.TRANSITIONS) == table


def test_bugs_have_names_of_their_own() -> None:
    assert len({bug.name for bug in ALL_BUGS}) == len(ALL_BUGS)
