"""A cluster of three workers, seen through pytest-celery: one leads, and whoever leads may be killed or stopped."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from celery_highlander import Highlander
from tests.arena.referee import Referee
from tests.arena.waiting import wait_until
from tests.faults.scenes import PATIENCE, PROCESS, QUEUE

if TYPE_CHECKING:
    from pytest_celery import CeleryTestSetup, CeleryTestWorker

    from tests.acceptance.nodes.conftest import Platform

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


def leader(setup: CeleryTestSetup, singleton: str = PROCESS, other_than: str = "") -> CeleryTestWorker:
    """Wait for a leader, and return the node that it is."""

    def found() -> CeleryTestWorker | None:
        name = Highlander(setup.app).whereis(singleton)
        return next((node for node in setup.worker_cluster if node.hostname() == name != other_than), None)

    return wait_until(found, PATIENCE, f"a leader of {singleton!r}")


def at_work(platform: Platform, after: int = 0) -> int:
    """Wait until the process was seen at work under a token above `after`, and return the token."""

    def token() -> int:
        latest = max((int(spell.owner.token) for spell in Referee(platform.journals).spells(PROCESS)), default=0)
        return latest if latest > after else 0

    return wait_until(token, PATIENCE, f"work under a token above {after}")


def takes_over(setup: CeleryTestSetup, platform: Platform, gone: CeleryTestWorker, token: int) -> None:
    """Wait until another node is at work; nobody was beside the former one."""
    assert leader(setup, other_than=gone.hostname()).container.status == "running"
    at_work(platform, after=token)
    Referee(platform.journals).verdict(PROCESS)


def consumers(setup: CeleryTestSetup) -> list[str]:
    """The nodes that consume the singleton queue."""
    answers = setup.app.control.inspect(timeout=2.0).active_queues() or {}
    return [node for node, queues in answers.items() if QUEUE in {queue["name"] for queue in queues}]


def test_one_worker_leads_and_it_alone_consumes_the_queue(celery_setup: CeleryTestSetup, platform: Platform) -> None:
    one = leader(celery_setup, QUEUE)
    wait_until(lambda: consumers(celery_setup) == [one.hostname()], PATIENCE, "one consumer, the leader")
    for number in range(20):
        celery_setup.app.send_task("tests.arena.shop.work", args=(number, 0.01), queue=QUEUE)
    ran = wait_until(
        lambda: [runs for runs in [Referee(platform.journals).task_runs(QUEUE)] if sum(r.finished for r in runs) == 20],
        PATIENCE,
        "all tasks to have run",
    )
    assert len({run.owner for run in ran[0]}) == 1
    Referee(platform.journals).verdict(QUEUE)


def test_another_worker_takes_over_from_one_that_is_killed(celery_setup: CeleryTestSetup, platform: Platform) -> None:
    first = leader(celery_setup)
    token = at_work(platform)
    first.kill("SIGKILL")
    takes_over(celery_setup, platform, first, token)


@pytest.mark.slow
def test_another_worker_takes_over_from_one_that_is_stopped(celery_setup: CeleryTestSetup, platform: Platform) -> None:
    first = leader(celery_setup)
    token = at_work(platform)
    first.kill("SIGTERM")
    takes_over(celery_setup, platform, first, token)
    wait_until(lambda: first.container.status == "exited", PATIENCE, "the first worker to end")


@pytest.mark.slow
def test_beat_ticks_once_for_all_workers(celery_setup: CeleryTestSetup, platform: Platform) -> None:
    leader(celery_setup, "beat")
    runs = wait_until(lambda: ticks_run(platform, at_least=4), PATIENCE, "four ticks to have run")
    engine = create_engine(platform.database, poolclass=NullPool)
    with engine.connect() as connection:
        due = connection.execute(text("select due_at from highlander_tick where entry = 'tick' order by 1")).scalars()
        instants = [instant.timestamp() for instant in due]
    assert runs <= len(instants), "some ran twice, or were sent by somebody else"
    assert all(later - earlier > 0.9 for earlier, later in itertools.pairwise(instants)), instants


def ticks_run(platform: Platform, at_least: int) -> int:
    """How many ticks have run, if so many have."""
    runs = len(Referee(platform.journals).task_runs("ordinary"))
    return runs if runs >= at_least else 0
