"""What happens to the database under a leader and its standby: their workers stay up, and go on by themselves."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.arena.journal import now_ns
from tests.arena.proxy import TcpProxy
from tests.arena.requirements import require
from tests.arena.servers import Database, Postgres
from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.scenes import PROCESS, QUEUE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.arena.cluster import Cluster, Worker
    from tests.arena.postgres import StopMode
    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres]

LEASE = 3.0  # of the arena's TIMELY settings
AFTER_THE_LEASE = LEASE + 0.3 + 4.0  # poll interval with its jitter, and what a busy machine takes
LONGEST_RECONNECT = 3.0  # the last delay between two attempts
SLOW = {PROCESS: "tests.arena.shop:slow_to_stop"}


@pytest.fixture
def postgres(own_server: Postgres) -> Database:
    """In place of the one on the shared server: this one may be stopped."""
    return own_server.create_database("shop")


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    require(Postgres.available())
    with Postgres() as server:
        yield server


def stay_up(*workers: Worker) -> None:
    """No worker ended, and each of them runs tasks."""
    assert all(worker.is_running for worker in workers)


def both_lead_again(cluster: Cluster, queue: int, process: int) -> None:
    scenes.acts(cluster, PROCESS, process)
    scenes.acts(cluster, QUEUE, queue)
    scenes.goes_on(cluster)
    cluster.referee().verdict(QUEUE, PROCESS)


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_nobody_else_acts_while_a_leader_whose_session_was_terminated_needs_3_seconds_to_stop(
    cluster: MakeCluster, postgres: Database, driver: str
) -> None:
    shop = cluster("rabbitmq", driver=driver, processes=SLOW)
    workers = scenes.leader_and_standby(shop)
    queue, process = shop.latest(QUEUE)[1], shop.latest(PROCESS)[1]
    assert postgres.server.terminate_backends("highlander %") == 2
    both_lead_again(shop, queue, process)
    stay_up(*workers)
    for singleton, token in ((QUEUE, queue), (PROCESS, process)):
        assert scenes.gap(shop, singleton, token) < AFTER_THE_LEASE


@pytest.mark.slow
def test_the_leaders_session_alone_terminated_hands_over_to_the_standby_or_back(cluster: MakeCluster) -> None:
    shop = cluster("rabbitmq", processes=SLOW)
    workers = scenes.leader_and_standby(shop)
    queue, process = shop.latest(QUEUE)[1], shop.latest(PROCESS)[1]
    scenes.terminate_leaders(shop)
    both_lead_again(shop, queue, process)
    stay_up(*workers)
    for singleton, token in ((QUEUE, queue), (PROCESS, process)):
        assert scenes.gap(shop, singleton, token) < AFTER_THE_LEASE


@pytest.mark.parametrize(
    ("mode", "driver"),
    [
        ("immediate", "psycopg2"),
        pytest.param("fast", "psycopg2", marks=pytest.mark.slow),
        pytest.param("fast", "psycopg", marks=pytest.mark.slow),
    ],
)
def test_workers_live_through_a_restart_of_the_database(
    cluster: MakeCluster, own_server: Postgres, mode: StopMode, driver: str
) -> None:
    shop = cluster("rabbitmq", driver=driver)
    workers = scenes.leader_and_standby(shop)
    queue, process = shop.latest(QUEUE)[1], shop.latest(PROCESS)[1]
    own_server.restart(mode)
    both_lead_again(shop, queue, process)
    stay_up(*workers)
    for singleton, token in ((QUEUE, queue), (PROCESS, process)):
        assert scenes.gap(shop, singleton, token) < AFTER_THE_LEASE + LONGEST_RECONNECT


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_nothing_runs_while_the_database_is_down_for_longer_than_the_lease(
    cluster: MakeCluster, own_server: Postgres, mode: StopMode
) -> None:
    shop = cluster("rabbitmq")
    workers = scenes.leader_and_standby(shop)
    queue, process = shop.latest(QUEUE)[1], shop.latest(PROCESS)[1]
    stopped_at = now_ns()
    own_server.stop(mode)
    wait_until(lambda: now_ns() - stopped_at > 10e9, 60.0, "an outage of 10 s")
    started_at = now_ns()
    own_server.start()
    both_lead_again(shop, queue, process)
    stay_up(*workers)
    for singleton in (QUEUE, PROCESS):
        before = [spell.last for spell in shop.referee().spells(singleton) if spell.first < started_at]
        after = [spell.first for spell in shop.referee().spells(singleton) if spell.first >= started_at]
        assert (max(before) - stopped_at) / 1e9 < LEASE
        assert (min(after) - started_at) / 1e9 < AFTER_THE_LEASE + LONGEST_RECONNECT


@pytest.mark.slow
def test_work_is_dead_before_the_lease_ends_when_the_database_is_paused(
    cluster: MakeCluster, own_server: Postgres
) -> None:
    shop = cluster("rabbitmq", processes=SLOW)
    workers = scenes.leader_and_standby(shop)
    queue, process = shop.latest(QUEUE)[1], shop.latest(PROCESS)[1]
    paused_at = now_ns()
    own_server.pause()
    wait_until(lambda: now_ns() - paused_at > 2 * LEASE * 1e9, 60.0, "a pause of twice the lease")
    own_server.resume()
    resumed_at = now_ns()
    both_lead_again(shop, queue, process)
    stay_up(*workers)
    for singleton, token in ((QUEUE, queue), (PROCESS, process)):
        spells = shop.referee().spells(singleton)
        assert (max(spell.last for spell in spells if spell.owner.token == str(token)) - paused_at) / 1e9 < LEASE
        later = min(spell.first for spell in spells if int(spell.owner.token) > token)
        assert (later - resumed_at) / 1e9 < AFTER_THE_LEASE + LONGEST_RECONNECT


@pytest.mark.parametrize(
    ("direction", "driver"),
    [
        pytest.param(None, "psycopg2", id="both-psycopg2"),
        pytest.param("to_client", "psycopg2", marks=pytest.mark.slow),
        pytest.param("to_server", "psycopg2", marks=pytest.mark.slow),
        pytest.param(None, "psycopg", id="both-psycopg", marks=pytest.mark.slow),
    ],
)
def test_a_leader_that_is_cut_off_from_the_database_is_replaced_within_the_lease(
    cluster: MakeCluster, own_server: Postgres, direction: str | None, driver: str
) -> None:
    with TcpProxy("127.0.0.1", own_server.port) as proxy:
        shop = cluster("rabbitmq", driver=driver, processes=SLOW)
        way = own_server.url(driver, dbname="shop", port=proxy.port)
        leader, standby = scenes.leader_and_standby(shop, leader_conf={"highlander_url": way})
        queue, process = shop.latest(QUEUE)[1], shop.latest(PROCESS)[1]
        proxy.cut(direction)  # type: ignore[arg-type]
        both_lead_again(shop, queue, process)
        for singleton, token in ((QUEUE, queue), (PROCESS, process)):
            assert scenes.gap(shop, singleton, token) < AFTER_THE_LEASE
        queue, process = shop.latest(QUEUE)[1], shop.latest(PROCESS)[1]
        proxy.heal()
        proxy.reset()
        wait_until(lambda: shop.lock_sessions() == 2, scenes.PATIENCE, "the leader of before to be back")
        stay_up(leader, standby)
        standby.send(signal.SIGKILL)
        both_lead_again(shop, queue, process)
        assert shop.leader(PROCESS) is leader
