"""What a worker tells over HTTP: its metrics as a Prometheus client reads them, and whether it does well."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from celery_highlander.worker.metrics import METRICS, PREFIX, REASONS, Histogram, Metrics, reason_class, render
from tests.arena.beats import BeatCluster
from tests.arena.cluster import Cluster
from tests.arena.processes import free_port
from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.conftest import lead_once
from tests.faults.scenes import PROCESS, QUEUE
from tests.integration.commands import PASSWORD, invoke
from tests.integration.scraping import get, health, samples, scrape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.arena.cluster import Worker
    from tests.arena.servers import Database, Redis

LIMIT = 60.0


@pytest.fixture(params=["prefork", pytest.param("gevent", marks=pytest.mark.slow)])
def make(
    request: pytest.FixtureRequest, postgres: Database, redis_server: Redis, tmp_path: Path
) -> Iterator[Callable[..., tuple[Cluster, list[int]]]]:
    redis_server.command("flushall")
    lead_once(postgres.url(), [QUEUE, PROCESS])
    clusters = []

    def start(workers: int = 1, **conf: Any) -> tuple[Cluster, list[int]]:
        conf = {"highlander_processes": {PROCESS: f"tests.arena.shop:{PROCESS}"}, **conf}
        cluster = Cluster(
            postgres.url(password=PASSWORD), {"broker_url": redis_server.url()}, tmp_path, conf, pool=request.param
        )
        clusters.append(cluster)
        ports = [free_port() for _ in range(workers)]
        for number, port in enumerate(ports):
            priority = () if number else ("--highlander-priority", "1")
            cluster.start(*scenes.QUIET, "-X", QUEUE, *priority, "--highlander-http-address", f"127.0.0.1:{port}")
            if not number:
                cluster.leader(PROCESS)
                cluster.leader(QUEUE)
        scenes.ready(*cluster.workers)
        return cluster, ports

    yield start
    for cluster in clusters:
        cluster.__exit__()


def leads(port: int) -> set[str]:
    return {labels for (name, labels), value in scrape(port).items() if name == "is_leader" and value}


@pytest.mark.postgres
def test_the_metrics_follow_a_handover(make: Callable[..., tuple[Cluster, list[int]]]) -> None:
    cluster, (first, second) = make(2)
    wait_until(lambda: leads(first) == {QUEUE, PROCESS}, LIMIT, "the first worker to lead everything")
    assert leads(second) == set()
    before = wait_until(lambda: _with_heartbeats(first), LIMIT, "a few heartbeats")
    assert before["session_open", ""] == 1
    assert 0 < before["lease_left_seconds", ""] <= 3.0
    assert before["leading_seconds_total", PROCESS] > 0
    assert before["takeover_seconds_count", PROCESS] == 1
    assert before["transitions_total", f"elected,{PROCESS},elected"] == 1
    assert ("lease_left_seconds", "") not in scrape(second)

    assert cluster.command("highlander", "step-down", PROCESS).returncode == 0
    wait_until(lambda: leads(second) == {PROCESS}, LIMIT, "the second worker to lead the process")
    after = scrape(first)
    assert after["transitions_total", f"operator,{PROCESS},stepped_down"] == 1
    cluster.command("highlander", "fence", QUEUE, "--yes")
    wait_until(lambda: scrape(first).get(("database_errors_total", "lost")), LIMIT, "the lost session to be counted")


def _with_heartbeats(port: int) -> dict[tuple[str, str], float]:
    found = scrape(port)
    return found if found.get(("heartbeat_seconds_count", ""), 0) > 2 else {}


@pytest.mark.postgres
def test_a_leader_and_a_standby_do_well_also_without_their_database(
    make: Callable[..., tuple[Cluster, list[int]]], postgres: Database
) -> None:
    _, (first, second) = make(2)
    for port in (first, second):
        status, found = health(port)
        assert status == 200
        assert found["ok"]
        assert found["connected"]
    assert sorted(health(first)[1]["leads"]) == sorted([QUEUE, PROCESS])
    done = invoke(["health", "--url", f"http://127.0.0.1:{second}"], {})
    assert done.exit_code == 0
    assert "well: leads nothing; its lock session is open" in done.stdout

    postgres.server.execute(f'alter database "{postgres.name}" allow_connections false')
    try:
        postgres.server.terminate_backends("highlander%")
        wait_until(lambda: not health(first)[1]["leads"], LIMIT, "the leader to lead nothing")
        status, found = health(first)
        assert (status, found["ok"], found["connected"]) == (200, True, False)
    finally:
        postgres.server.execute(f'alter database "{postgres.name}" allow_connections true')


@pytest.mark.postgres
def test_a_main_loop_that_hangs_is_a_problem(
    make: Callable[..., tuple[Cluster, list[int]]],
) -> None:
    cluster, (port,) = make(1, highlander_progress_timeout=1.0, highlander_on_stuck="continue")
    if cluster.pool == "gevent":
        pytest.skip("its sleep does not hang the loop")
    worker: Worker = cluster.workers[0]
    worker.send(signal.SIGUSR2)  # hangs the main loop
    wait_until(lambda: health(port)[0] == 503, LIMIT, "it not to do well")
    assert "main loop has made no progress" in health(port)[1]["problems"][0]
    done = invoke(["health", "--url", f"http://127.0.0.1:{port}", "--json"], {})
    assert done.exit_code == 1
    assert not json.loads(done.stdout)["ok"]


@pytest.mark.slow
@pytest.mark.postgres
def test_a_port_that_is_taken_is_told_and_the_worker_works(make: Callable[..., tuple[Cluster, list[int]]]) -> None:
    cluster, (port,) = make()
    late = cluster.start(*scenes.QUIET, "-X", QUEUE, "--highlander-http-address", f"127.0.0.1:{port}")
    scenes.ready(late)
    assert f"127.0.0.1:{port} cannot be listened on" in late.log
    assert late.is_running
    assert get(port, "/") == (404, "There is /metrics and /healthz.\n")

    cluster.workers[0].close()  # as a rolling restart goes on
    wait_until(lambda: f"/metrics and /healthz on 127.0.0.1:{port}" in late.log, LIMIT, "the late one to get the port")
    assert health(port)[0] == 200
    late.send(signal.SIGTERM)
    assert late.wait() == 0


@pytest.mark.postgres
def test_the_ticks_of_a_beat_are_counted(postgres: Database, redis_server: Redis, tmp_path: Path) -> None:
    redis_server.command("flushall")
    lead_once(postgres.url(), ["beat"])
    port = free_port()
    entries = {"often": {"seconds": 0.5}}
    conf = {"highlander_http_address": f"127.0.0.1:{port}"}
    broker = {"broker_url": redis_server.url()}
    with BeatCluster(postgres.url(password=PASSWORD), broker, tmp_path, entries, conf) as cluster:
        beat = cluster.start_beat()
        wait_until(lambda: "/metrics and /healthz on" in beat.log, LIMIT, "it to listen")
        wait_until(lambda: scrape(port).get(("ticks_sent_total", ""), 0) > 2, LIMIT, "some ticks")
        found = scrape(port)
        assert found["tick_lateness_seconds_count", ""] == pytest.approx(found["ticks_sent_total", ""], abs=1)
        assert health(port)[1]["leads"] == ["beat"]


# -- the command, and the text -----------------------------------------------------------------------------------------


def test_nobody_at_the_address_is_an_error_of_its_own() -> None:
    port = free_port()
    done = invoke(["health", "--url", f"http://127.0.0.1:{port}"], {"highlander_url": "postgresql://a@b/c"})
    assert done.exit_code == 69
    assert f"no worker answers at http://127.0.0.1:{port}" in done.stderr
    done = invoke(["health"], {"highlander_url": "postgresql://a@b/c"})
    assert done.exit_code == 78
    assert "highlander_http_address is not set" in done.stderr
    done = invoke(["health"], {"highlander_url": "postgresql://a@b/c", "highlander_http_address": f":{port}"})
    assert f"no worker answers at http://127.0.0.1:{port}" in done.stderr
    done = invoke(["health", "--url", "shop"], {"highlander_url": "postgresql://a@b/c"})
    assert done.exit_code == 78


def test_somebody_else_at_the_address_is_no_worker(redis_server: Redis) -> None:
    done = invoke(["health", "--url", f"http://127.0.0.1:{redis_server.port}"], {})
    assert done.exit_code == 69


def test_every_metric_is_written_as_the_parser_expects_it() -> None:
    metrics = Metrics(['a "quoted" name\\', "b"])
    metrics.elected("b")
    metrics.ended("b", "worker shutting down", lost=False)
    metrics.phase("b", "beginning")
    metrics.phase("b", "leading")
    metrics.take(
        {"ticks_sent_total": 3, "runs_total:busy": 2, "nonsense": 1, "runs_total": 1, "ticks_sent_total:x": 1},
        {"heartbeat_seconds": [0.002, 9.0], "ticks_sent_total": [1], "nonsense": [1]},
    )
    text = render(metrics.families(connected=True, leading=["b"], paused=[], deadline=1e12))
    families = {family.name: family for family in text_string_to_metric_families(text)}
    for metric in METRICS:
        name = (PREFIX + metric.name).removesuffix("_total")
        assert families[name].type == metric.kind
        assert families[name].documentation == metric.text
    found = samples(text)
    assert found["is_leader", 'a "quoted" name\\'] == 0
    assert found["is_leader", "b"] == 1
    assert found["ticks_sent_total", ""] == 3
    assert found["runs_total", "busy"] == 2
    assert found["transitions_total", "shutdown,b,stepped_down"] == 1
    buckets = {s.labels["le"]: s.value for s in families[f"{PREFIX}heartbeat_seconds"].samples if "le" in s.labels}
    assert buckets["0.001"] == 0
    assert buckets["0.0025"] == 1
    assert buckets["+Inf"] == 2
    assert list(buckets.values()) == sorted(buckets.values())


def test_a_value_on_the_edge_of_a_bucket_is_within_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (1.0, 1.5, 3.0):
        histogram.observe(value)
    assert histogram.counts == [1, 1, 1]
    assert histogram.sum == 5.5


@pytest.mark.parametrize(("beginning", "name"), REASONS)
def test_a_reason_has_one_of_few_classes(beginning: str, name: str) -> None:
    assert reason_class(f"{beginning} and more") == name
    assert reason_class("OperationalError: server closed the connection") == "database"


def test_the_collector_of_an_application_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from celery import Celery
    from prometheus_client import CollectorRegistry, generate_latest

    from celery_highlander import Highlander, prometheus

    metrics = Metrics(["b"])
    metrics.elected("b")
    metrics.take({"runs_total:busy": 2}, {"heartbeat_seconds": [0.002]})
    families = metrics.families(connected=True, leading=["b"], paused=[], deadline=0)
    app = Celery("shop", set_as_current=False)
    registry = CollectorRegistry()
    registry.register(prometheus.HighlanderCollector(app))
    assert generate_latest(registry) == b""  # no worker here
    monkeypatch.setattr(Highlander(app), "link", object())
    monkeypatch.setattr(prometheus, "families_of", lambda _link: families)
    ours = {key: value for key, value in samples(render(families)).items() if key[0] != "leading_seconds_total"}
    theirs = samples(generate_latest(registry).decode())
    assert {key: theirs[key] for key in ours} == ours
