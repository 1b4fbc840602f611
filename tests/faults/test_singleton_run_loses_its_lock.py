"""The lock session of a run is lost, in every way there is: what goes on is dead before another run begins."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.arena import processes
from tests.arena.proxy import TcpProxy
from tests.arena.requirements import require
from tests.arena.run_cluster import LEASE, PATIENCE, seconds_between
from tests.arena.servers import Database, Postgres
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.arena.cluster import Worker
    from tests.arena.postgres import StopMode
    from tests.arena.records import TaskRun
    from tests.arena.run_cluster import RunCluster
    from tests.conftest import MakeRunCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres, pytest.mark.redis]

KEY = "k"
AT_ONCE = LEASE / 2
AFTER_THE_LEASE = LEASE + 4.0  # to look at heartbeats and to poll, and what a busy machine takes
POOLS = ("threads", "gevent", "solo")
RAISED = f"the run of {KEY} heard that its lock is lost"


@pytest.fixture
def postgres(own_server: Postgres) -> Database:
    """In place of the one on the shared server: this one may be stopped."""
    return own_server.create_database("runs")


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    require(Postgres.available())
    with Postgres() as server:
        yield server


def pid_of(run: TaskRun) -> int:
    return int(run.owner.node.partition("-")[0])


def one_runs_and_two_waits(shop: RunCluster, how: str, task: str = "waits") -> tuple[Worker, TaskRun, str]:
    one, two = shop.start_node("one", concurrency=2, conf=ways(shop)), shop.start_node("two", concurrency=2)
    run = shop.begin(task, KEY, 600.0, how, on="one")
    waiting = shop.queue_up("waits", KEY, two, 0.5)
    assert not shop.runs(KEY, waiting)
    return one, run, waiting


def ways(shop: RunCluster) -> dict[str, str]:
    return {"highlander_url": shop.conf["way_of_one"]} if "way_of_one" in shop.conf else {}


def terminate_session_of(shop: RunCluster, worker: Worker) -> None:
    """Have the server end the lock session of one worker."""
    rows = shop.query(
        "select pg_terminate_backend(l.pid) from pg_locks l join highlander_run r"
        " on (l.classid::bigint << 32) | l.objid::bigint = r.key"
        " where l.locktype = 'advisory' and l.granted and r.key <> -1"
    )
    assert rows, worker.log


def never_two(shop: RunCluster, run: TaskRun, waiting: str, within: float) -> TaskRun:
    """Wait for the waiting run; judge."""
    after = shop.begun(KEY, waiting)
    wait_until(lambda: shop.runs(KEY, waiting)[0].finished, PATIENCE, "the run that has waited to end")
    shop.referee().verdict(KEY)
    before = shop.runs(KEY, run.task_id)[0]
    assert 0 <= seconds_between(before, after) < within
    assert not before.finished or run.owner != before.owner
    shop.nothing_is_held()
    return before


@pytest.mark.parametrize("pool", ["prefork", *(pytest.param(pool, marks=pytest.mark.slow) for pool in POOLS)])
def test_a_run_that_ignores_the_loss_of_its_session_is_killed_before_the_next_one_begins(
    runs: MakeRunCluster, pool: str
) -> None:
    shop = runs(pool=pool)
    one, run, waiting = one_runs_and_two_waits(shop, "stubborn")
    terminate_session_of(shop, one)
    never_two(shop, run, waiting, AFTER_THE_LEASE)
    assert "goes on after SingletonRunLostError" in one.log
    assert not processes.is_alive(pid_of(run))
    assert one.is_running == (pool == "prefork")


@pytest.mark.parametrize("pool", ["prefork", *(pytest.param(pool, marks=pytest.mark.slow) for pool in POOLS)])
def test_a_run_that_obeys_makes_room_at_once(runs: MakeRunCluster, pool: str) -> None:
    shop = runs(pool=pool)
    one, run, waiting = one_runs_and_two_waits(shop, "return")
    terminate_session_of(shop, one)
    never_two(shop, run, waiting, AT_ONCE)
    assert RAISED in one.log
    assert one.is_running
    assert processes.is_alive(pid_of(run))
    state = shop.app.AsyncResult(run.task_id)
    wait_until(lambda: state.state == "FAILURE", PATIENCE, "its failure to be known")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fast", "immediate"])
@pytest.mark.parametrize("how", ["stubborn", "return"])
@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_nothing_overlaps_over_a_restart_of_the_database(
    runs: MakeRunCluster, own_server: Postgres, mode: StopMode, how: str, driver: str
) -> None:
    shop = runs("rabbitmq", driver=driver)
    one, run, waiting = one_runs_and_two_waits(shop, how)
    own_server.restart(mode)
    # A crash empties the table of runs: then everybody waits for the longest lease, from the first connection on.
    never_two(shop, run, waiting, 2 * LEASE + 8.0)
    assert one.is_running
    if how == "return":
        assert RAISED in one.log


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", *POOLS])
@pytest.mark.parametrize("how", ["stubborn", "return"])
def test_a_run_ends_when_its_keeper_is_killed(runs: MakeRunCluster, pool: str, how: str) -> None:
    shop = runs(pool=pool)
    one, run, waiting = one_runs_and_two_waits(shop, how)
    os.kill(one.keeper, signal.SIGKILL)
    before = never_two(shop, run, waiting, AFTER_THE_LEASE)
    assert ("goes on after" if how == "stubborn" else RAISED) in one.log
    if how == "return":
        assert before.last - run.first < 60e9
        again = shop.call("waits", KEY, on="one")  # under the next keeper
        assert again.get(timeout=PATIENCE, interval=0.05)["retries"] == 0
    assert one.is_running == (pool == "prefork" or how == "return")


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", *POOLS])
@pytest.mark.parametrize("how", ["stubborn", "return"])
def test_a_run_ends_itself_while_its_keeper_is_frozen(runs: MakeRunCluster, pool: str, how: str) -> None:
    shop = runs(pool=pool)
    one, run, waiting = one_runs_and_two_waits(shop, how)
    keeper = one.keeper
    os.kill(keeper, signal.SIGSTOP)
    try:
        never_two_yet(shop, run, waiting)
    finally:
        processes.send(keeper, signal.SIGCONT)
    shop.nothing_is_held()


def never_two_yet(shop: RunCluster, run: TaskRun, waiting: str) -> None:
    """As `never_two`, while a session may stay open whose keeper is frozen: the server drops it in time."""
    shop.begun(KEY, waiting)
    wait_until(lambda: shop.runs(KEY, waiting)[0].finished, PATIENCE, "the run that has waited to end")
    shop.referee().verdict(KEY)
    assert not processes.is_alive(pid_of(run)) or not shop.runs(KEY, run.task_id)[0].finished


@pytest.mark.slow
@pytest.mark.parametrize("direction", [None, "to_client", "to_server"])
@pytest.mark.parametrize("how", ["stubborn", "return"])
def test_a_run_on_a_node_that_is_cut_off_from_the_database_ends_before_the_next_one_begins(
    runs: MakeRunCluster, own_server: Postgres, postgres: Database, direction: str | None, how: str
) -> None:
    with TcpProxy("127.0.0.1", own_server.port) as proxy:
        shop = runs()
        shop.conf["way_of_one"] = postgres.url(port=proxy.port)
        one, run, waiting = one_runs_and_two_waits(shop, how)
        proxy.cut(direction)  # type: ignore[arg-type]
        never_two_yet(shop, run, waiting)
        proxy.heal()
        proxy.reset()
        again = shop.call("waits", KEY, on="one")
        assert again.get(timeout=PATIENCE, interval=0.05)["retries"] == 0
        assert one.is_running
        shop.nothing_is_held()
        shop.referee().verdict(KEY)


@pytest.mark.slow
def test_a_pool_child_that_is_frozen_keeps_its_key(runs: MakeRunCluster) -> None:
    shop = runs()
    one, run, waiting = one_runs_and_two_waits(shop, "return")
    os.kill(pid_of(run), signal.SIGSTOP)
    wait_until(lambda: shop.query("select count(*) from highlander_runner") == [(2,)], PATIENCE, "the other session")
    beats = shop.query("select heartbeats from highlander_runner order by holder")
    wait_until(
        lambda: all(
            now[0] > then[0] + 12
            for now, then in zip(
                shop.query("select heartbeats from highlander_runner order by holder"), beats, strict=True
            )
        ),
        PATIENCE,
        "heartbeats of more than a lease",
    )
    assert not shop.runs(KEY, waiting)
    os.kill(pid_of(run), signal.SIGCONT)
    shop.app.control.revoke(run.task_id, terminate=True, signal="SIGKILL")
    never_two(shop, run, waiting, AT_ONCE)
    assert one.is_running


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["session", "frozen"])
def test_a_frozen_pool_child_whose_session_is_lost_is_killed_by_the_keeper(runs: MakeRunCluster, fault: str) -> None:
    shop = runs()
    one, run, waiting = one_runs_and_two_waits(shop, "return")
    os.kill(pid_of(run), signal.SIGSTOP)
    if fault == "session":
        terminate_session_of(shop, one)
    else:
        shop.query("delete from highlander_runner")  # somebody clears the tables
    never_two(shop, run, waiting, AFTER_THE_LEASE)
    assert not processes.is_alive(pid_of(run))


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_run_goes_on_where_that_is_wanted(runs: MakeRunCluster, pool: str) -> None:
    shop = runs(pool=pool)
    one, two = (shop.start_node(name, concurrency=2) for name in ("one", "two"))
    run = shop.begin("goes_on", KEY, 8.0, on="one")
    waiting = shop.queue_up("waits", KEY, two)
    terminate_session_of(shop, one)
    result: Callable[..., dict[str, int]] = shop.app.AsyncResult(run.task_id).get
    assert result(timeout=PATIENCE, interval=0.05)["retries"] == 0
    shop.begun(KEY, waiting)
    assert one.is_running
    shop.nothing_is_held()
