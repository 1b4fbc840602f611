"""Every way for a run of a singleton task to end, `kill -9` of its process among them: the next run begins at once."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.arena import processes
from tests.arena.run_cluster import LEASE, PATIENCE, seconds_between
from tests.arena.waiting import wait_until
from tests.faults import scenes

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.arena.cluster import Worker
    from tests.arena.records import TaskRun
    from tests.arena.run_cluster import RunCluster
    from tests.conftest import MakeRunCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres, pytest.mark.redis]

AT_ONCE = LEASE / 2
KEY = "k"
POOLS = ("threads", "gevent", "solo")


def _pid(run: TaskRun) -> int:
    return int(run.owner.node.partition("-")[0])


def _revoke(number: str) -> Callable[[RunCluster, Worker, TaskRun], None]:
    return lambda shop, _, run: shop.app.control.revoke(run.task_id, terminate=True, signal=number)


def _kill_child(_: RunCluster, __: Worker, run: TaskRun) -> None:
    os.kill(_pid(run), signal.SIGKILL)


def _send(number: signal.Signals) -> Callable[[RunCluster, Worker, TaskRun], None]:
    return lambda _, worker, __: worker.send(number)


def _nothing(_: RunCluster, __: Worker, ___: TaskRun) -> None:
    pass


Ending = tuple[str, float, str, "Callable[[RunCluster, Worker, TaskRun], None]"]
ENDINGS: dict[str, Ending] = {
    "return": ("waits", 1.0, "return", _nothing),
    "exception": ("waits", 1.0, "raise", _nothing),
    "retry": ("waits", 1.0, "retry", _nothing),
    "reject": ("waits_late", 1.0, "reject", _nothing),
    "ignore": ("waits", 1.0, "ignore", _nothing),
    "soft time limit": ("limited", 600.0, "return", _nothing),
    "hard time limit": ("limited_hard", 600.0, "return", _nothing),
    "revoked with SIGTERM": ("waits", 600.0, "return", _revoke("SIGTERM")),
    "revoked with SIGKILL": ("waits", 600.0, "return", _revoke("SIGKILL")),
    "pool child killed": ("waits", 600.0, "return", _kill_child),
    "worker killed": ("waits", 600.0, "return", _send(signal.SIGKILL)),
    "warm shutdown": ("waits", 2.0, "return", _send(signal.SIGTERM)),
    "cold shutdown": ("waits", 600.0, "return", _send(signal.SIGQUIT)),
}
"""The task, its duration, how it ends, and what is done to its worker."""

ANYWHERE = ("return", "exception", "retry", "worker killed", "warm shutdown")
QUICK = ("hard time limit", "worker killed")
CASES = [
    *(pytest.param("prefork", name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in ENDINGS),
    *(pytest.param(pool, name, marks=[pytest.mark.slow]) for pool in POOLS for name in ANYWHERE),
]


@pytest.mark.parametrize(("pool", "ending"), CASES)
def test_the_next_run_begins_on_another_node_as_soon_as_one_has_ended(
    runs: MakeRunCluster, pool: str, ending: str
) -> None:
    task, seconds, how, inflict = ENDINGS[ending]
    shop = runs(pool=pool)
    one, two = (shop.start_node(name, concurrency=2) for name in ("one", "two"))
    run = shop.begin(task, KEY, seconds, how, on="one")
    waiting = shop.queue_up("waits", KEY, two)
    assert not shop.runs(KEY, waiting)
    inflict(shop, one, run)
    after = shop.begun(KEY, waiting)
    before = shop.runs(KEY, run.task_id)[0]
    assert 0 <= seconds_between(before, after) < AT_ONCE
    if how == "retry":
        shop.begun(KEY, run.task_id, 2)
    wait_until(lambda: shop.runs(KEY, waiting)[0].finished, PATIENCE, "the run that has waited to end")
    shop.nothing_is_held()
    shop.referee().verdict(KEY)
    if "worker" in ending or "shutdown" in ending:
        scenes.nothing_left(one)
    else:
        assert one.is_running


@pytest.mark.slow
def test_the_next_run_begins_at_once_on_the_same_node_too(runs: MakeRunCluster) -> None:
    shop = runs("rabbitmq")
    one = shop.start_node("one", concurrency=2)
    for ending in ("exception", "retry", "pool child killed"):
        task, seconds, how, inflict = ENDINGS[ending]
        key = ending.replace(" ", "-")
        run = shop.begin(task, key, seconds, how, on="one")
        waiting = shop.queue_up("waits", key, one)
        inflict(shop, one, run)
        after = shop.begun(key, waiting)
        assert 0 <= seconds_between(shop.runs(key, run.task_id)[0], after) < AT_ONCE
        shop.referee().verdict(key)


@pytest.mark.slow
def test_a_pool_child_that_is_replaced_after_each_task_leaves_nothing_held(runs: MakeRunCluster) -> None:
    shop = runs()
    shop.start_node("one", "--max-tasks-per-child", "1", concurrency=3)
    two = shop.start_node("two", concurrency=1)
    sent = [shop.call("waits", KEY, 0.05, on="one").id for _ in range(9)]
    wait_until(lambda: not shop.referee().missing(sent, KEY), PATIENCE, "all runs")
    children = {_pid(run) for run in shop.runs(KEY)}
    assert len(children) == 9
    waiting = shop.queue_up("waits", KEY, two)
    after = shop.begun(KEY, waiting)
    assert seconds_between(shop.runs(KEY)[-2], after) < PATIENCE
    shop.nothing_is_held()
    shop.referee().verdict(KEY)


@pytest.mark.slow
def test_what_a_run_has_forked_does_not_keep_its_key(runs: MakeRunCluster) -> None:
    shop = runs()
    _, two = (shop.start_node(name, concurrency=2) for name in ("one", "two"))
    run = shop.begin("forks", KEY, 600.0, on="one")
    waiting = shop.queue_up("waits", KEY, two)
    children = wait_until(lambda: processes.descendants(_pid(run)), PATIENCE, "a process of the run")
    os.kill(_pid(run), signal.SIGKILL)
    after = shop.begun(KEY, waiting)
    assert seconds_between(shop.runs(KEY, run.task_id)[0], after) < AT_ONCE
    for pid in children:
        processes.send(pid, signal.SIGKILL)
    shop.referee().verdict(KEY)
