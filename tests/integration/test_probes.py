"""What probes and Prometheus hear of a worker in trouble: one that cannot do its work says so, on any pool."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from celery_highlander.worker.metrics import PREFIX
from tests.arena.cluster import Cluster
from tests.arena.processes import free_port
from tests.arena.proxy import TcpProxy
from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.conftest import lead_once
from tests.faults.scenes import PATIENCE, PROCESS, QUEUE
from tests.integration.scraping import get, health, scrape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.arena.cluster import Worker
    from tests.arena.servers import Database, Redis
    from tests.integration.keyed import KeyedCluster

    Start = Callable[..., tuple[Cluster, Worker, int]]

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

POOLS = (
    "prefork",
    pytest.param("gevent", marks=pytest.mark.slow),
    pytest.param("eventlet", marks=pytest.mark.slow),
)


@pytest.fixture
def start(postgres: Database, redis_server: Redis, tmp_path: Path) -> Iterator[Start]:
    """Starts a cluster with one worker, which leads, and returns both and where it answers."""
    redis_server.command("flushall")
    lead_once(postgres.url(), [QUEUE, PROCESS])
    clusters = []

    def made(pool: str = "prefork", work: str = PROCESS, **conf: Any) -> tuple[Cluster, Worker, int]:
        conf = {"highlander_processes": {PROCESS: f"tests.arena.shop:{work}"}, **conf}
        cluster = Cluster(postgres.url(), {"broker_url": redis_server.url()}, tmp_path, conf, pool=pool)
        clusters.append(cluster)
        port = free_port()
        worker = cluster.start(*scenes.QUIET, "-X", QUEUE, "--highlander-http-address", f"127.0.0.1:{port}")
        scenes.ready(worker)
        wait_until(lambda: len(health(port)[1]["leads"]) == 2, PATIENCE, "it to lead both")
        assert health(port)[0] == 200
        return cluster, worker, port

    yield made
    for cluster in clusters:
        cluster.__exit__()


def falls_ill(port: int) -> list[str]:
    """Wait until a worker says that it does not do well; return its problems."""

    def problems() -> list[str]:
        status, found = health(port)
        assert (status == 200) is found["ok"]
        return list(found["problems"])

    return wait_until(problems, PATIENCE, "it to do badly")


def recovers(port: int) -> None:
    wait_until(lambda: health(port)[0] == 200, PATIENCE, "it to do well again")


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
def test_a_stopped_keeper_makes_the_lease_overdue_until_there_is_a_new_one(start: Start, pool: str) -> None:
    _, worker, port = start(pool, highlander_worker_timeout=2.4)
    keeper = worker.keeper
    os.kill(keeper, signal.SIGSTOP)
    assert "the lease is overdue" in falls_ill(port)[0]
    recovers(port)
    wait_until(lambda: worker.keeper != keeper, PATIENCE, "another keeper")
    wait_until(lambda: len(health(port)[1]["leads"]) == 2, PATIENCE, "it to lead both again")
    found = scrape(port)
    assert found["transitions_total", f"keeper,{PROCESS},lost"] == 1
    assert found["transitions_total", f"elected,{PROCESS},elected"] == 2


def test_a_leader_without_its_database_does_badly_until_its_work_is_dead(start: Start, postgres: Database) -> None:
    with TcpProxy("127.0.0.1", postgres.server.port) as proxy:
        cluster, _, port = start(work="slow_to_stop", highlander_url=postgres.url(port=proxy.port))
        standby_port = free_port()
        standby = cluster.start(*scenes.QUIET, "-X", QUEUE, "--highlander-http-address", f"127.0.0.1:{standby_port}")
        scenes.ready(standby)
        proxy.cut()  # nobody is told: neither end of a connection, nor a refusal
        assert PROCESS in falls_ill(port)[0]
        assert health(standby_port)[0] == 200
        recovers(port)
        found = scrape(port)
        assert (found["session_open", ""], found["is_leader", PROCESS], found["healthy", ""]) == (0, 0, 1)
        assert found["database_errors_total", "lost"] == 1
        assert ("lease_left_seconds", "") not in found
        proxy.heal()
        wait_until(lambda: scrape(port)["session_open", ""] == 1, PATIENCE, "a lock session")


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_a_task_that_never_yields_hangs_a_green_worker_which_says_so(start: Start, pool: str) -> None:
    cluster, _, port = start(pool, highlander_progress_timeout=1.0, highlander_on_stuck="continue")
    cluster.send(1, seconds=8.0, task="sleeps")
    assert "main loop has made no progress" in falls_ill(port)[0]
    assert scrape(port)["healthy", ""] == 0
    recovers(port)


def test_clients_that_do_not_come_to_an_end_hold_nobody_up_and_are_given_up(start: Start) -> None:
    _, _, port = start()
    with contextlib.ExitStack() as stack:
        for _ in range(10):  # which would be 20 s, one after the other
            stack.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(b"GET /healthz")
        assert health(port)[0] == 200
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(0.2)

        def hung_up() -> bool:
            try:
                client.sendall(b"x")
                return client.recv(1) == b""
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        wait_until(hung_up, 10, "the worker to hang up")
    assert health(port)[0] == 200


def test_the_runs_of_pool_children_are_counted_whatever_prometheus_client_is_told(
    keyed: KeyedCluster, tmp_path: Path
) -> None:
    port = free_port()
    shared = tmp_path / "multiprocess"
    shared.mkdir()
    worker = keyed.start(
        *scenes.QUIET,
        *("--highlander-http-address", f"127.0.0.1:{port}"),
        env={"PROMETHEUS_MULTIPROC_DIR": str(shared)},
        concurrency=2,
    )
    scenes.ready(worker)
    keyed.post("hold", "a", 2.0, task_id="first")
    wait_until(lambda: scrape(port)["runs_total", "held"] == 1, PATIENCE, "the first run")
    keyed.post("hold", "a", 0.0, task_id="second")
    found = wait_until(lambda: _with_conflict(port), PATIENCE, "a conflict")
    assert found["runs_total", "held"] == 1
    assert found["run_wait_seconds_total", ""] >= 0
    assert len(worker.children) == 2
    assert list(shared.iterdir()) == []


def _with_conflict(port: int) -> dict[tuple[str, str], float]:
    found = scrape(port)
    return found if found["runs_total", "busy"] else {}


@pytest.mark.parametrize("pool", ["prefork", pytest.param("gevent", marks=pytest.mark.slow)])
def test_an_application_serves_the_metrics_among_its_own(
    postgres: Database, redis_server: Redis, tmp_path: Path, pool: str
) -> None:
    redis_server.command("flushall")
    lead_once(postgres.url(), [QUEUE])
    port = free_port()

    class OwnMetrics(Cluster):
        app_path = "tests.arena.registry_shop"

    with OwnMetrics(postgres.url(), {"broker_url": redis_server.url()}, tmp_path, pool=pool) as cluster:
        worker = cluster.start(*scenes.QUIET, "-X", QUEUE, env={"HIGHLANDER_ARENA_METRICS_PORT": str(port)})
        scenes.ready(worker)
        wait_until(lambda: scrape(port)["is_leader", QUEUE] == 1, PATIENCE, "the leadership to show")
        assert scrape(port)["shop_starts_total", ""] == 1
        assert scrape(port)["transitions_total", f"elected,{QUEUE},elected"] == 1


@pytest.mark.slow
def test_a_database_that_never_answers_a_new_connection_is_an_error_of_its_own(
    start: Start, postgres: Database
) -> None:
    with TcpProxy("127.0.0.1", postgres.server.port) as proxy:
        _, _, port = start(highlander_url=postgres.url(port=proxy.port))
        proxy.cut()
        wait_until(lambda: scrape(port)["database_errors_total", "refused"], PATIENCE, "a try that took too long")
        assert scrape(port)["session_open", ""] == 0
        proxy.heal()
        wait_until(lambda: len(health(port)[1]["leads"]) == 2, PATIENCE, "it to lead both again")


def test_what_can_be_counted_begins_at_zero(start: Start) -> None:
    _, _, port = start()
    families = {family.name: family for family in text_string_to_metric_families(get(port, "/metrics")[1])}
    for name in ("failures", "database_errors", "runs"):
        assert [sample.value for sample in families[PREFIX + name].samples] != []
        assert all(sample.value == 0 for sample in families[PREFIX + name].samples)
    transitions = {s.labels["to"]: s.value for s in families[f"{PREFIX}transitions"].samples}
    assert transitions == {"elected": 1, "lost": 0, "stepped_down": 0}
