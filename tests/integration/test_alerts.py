"""The alerts and the dashboard that are shipped: each alert fires in a real Prometheus when its condition is there."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
import yaml

from celery_highlander.election.keys import lock_key
from celery_highlander.worker.metrics import METRICS, PREFIX
from tests.arena import processes
from tests.arena.beats import BEAT, BeatCluster
from tests.arena.cluster import Cluster
from tests.arena.processes import free_port
from tests.arena.prometheus import Prometheus
from tests.arena.proxy import TcpProxy
from tests.arena.requirements import require
from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.conftest import lead_once
from tests.faults.scenes import PATIENCE, PROCESS, QUEUE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.arena.cluster import Worker
    from tests.arena.servers import Database, Postgres, Redis

MONITORING = Path(__file__).parents[2] / "docs" / "monitoring"
RULES = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
DASHBOARD = json.loads((MONITORING / "grafana.json").read_text())

HASTE = ((r"\[\d+m\]", "[30s]"), (r"> 30$", "> 0.5"))
"""How the expressions are changed: tests have no 15 minutes, and no beat that is late by 30 s."""

FIRED_HERE = {
    "HighlanderNobodyLeads",
    "HighlanderTwoLead",
    "HighlanderHeldButSilent",
    "HighlanderFlapping",
    "HighlanderUnhealthy",
    "HighlanderSessionClosed",
    "HighlanderHeartbeatSlow",
    "HighlanderProcessFails",
    "HighlanderTicksSkipped",
    "HighlanderTicksLate",
    "HighlanderNoStandby",
    "HighlanderPaused",
    "HighlanderNoNodes",
}
"""What the tests below see firing."""

NAMESPACE = "shop"


def rules() -> Iterator[dict[str, Any]]:
    for group in RULES["groups"]:
        yield from group["rules"]


def hasty(rule: dict[str, Any]) -> dict[str, Any]:
    expr = rule["expr"].strip()
    for pattern, instead in HASTE:
        expr = re.sub(pattern, instead, expr)
    return {**rule, "expr": expr, **({"for": "1500ms"} if "for" in rule else {})}


class Scene:
    """A cluster that answers over HTTP, and the Prometheus that watches it."""

    def __init__(self, cluster: Cluster, ports: list[int]) -> None:
        require(Prometheus.available())
        self.cluster, self.ports = cluster, ports
        self.prometheus = Prometheus({"shop": ports}, {"groups": [{"name": "x", "rules": [*map(hasty, rules())]}]})

    def start(self, number: int, **conf: Any) -> Worker:
        address = ("--highlander-http-address", f"127.0.0.1:{self.ports[number]}")
        priority = () if number else ("--highlander-priority", "1")
        env = conf.pop("env", None)
        return self.cluster.start(*scenes.QUIET, "-X", QUEUE, *priority, *address, conf=conf, env=env)

    def instance(self, number: int) -> str:
        return f"127.0.0.1:{self.ports[number]}"

    def fires(self, alert: str, subject: str = "") -> set[tuple[str, str]]:
        """Wait until it fires; return everything that fires then."""

        def found() -> set[tuple[str, str]]:
            firing = self.prometheus.firing()
            return firing if (alert, subject) in firing else set()

        return wait_until(found, PATIENCE, f"{alert} to fire for {subject!r}")

    def is_quiet(self, *but: str) -> None:
        """Wait until nothing fires (but what is named)."""
        wait_until(lambda: not {name for name, _ in self.prometheus.firing()} - {*but}, PATIENCE, "no alert")

    def value(self, expression: str) -> float:
        found = self.prometheus.query(expression)
        return found[0][1] if found else 0.0


@pytest.fixture
def cluster(postgres: Database, redis_server: Redis, tmp_path: Path) -> Iterator[Cluster]:
    redis_server.command("flushall")
    lead_once(postgres.url(), [QUEUE, PROCESS])
    conf = {"highlander_processes": {PROCESS: f"tests.arena.shop:{PROCESS}"}, "highlander_namespace": NAMESPACE}
    with Cluster(postgres.url(), {"broker_url": redis_server.url()}, tmp_path, conf) as made:
        yield made


def operate(cluster: Cluster, *words: str) -> None:
    done = cluster.command("highlander", *words)
    assert done.returncode == 0, done.stderr


def answers_every_panel(prometheus: Prometheus) -> None:
    """Wait until every query of the dashboard finds something (but of the beat, which nobody runs here)."""

    queries = [query.replace("$__rate_interval", "30s") for query in panel_queries() if "tick" not in query]
    for query in queries:
        plain = query.replace("$job", ".*").replace("$singleton", ".*")
        wait_until(lambda plain=plain: prometheus.query(plain), 10, f"{plain} to find something")  # type: ignore[misc]


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.redis
@pytest.mark.prometheus
def test_alerts_fire_when_nobody_leads_or_a_silent_stranger_holds_the_lock(
    cluster: Cluster, postgres: Database
) -> None:
    scene = Scene(cluster, [free_port(), free_port()])
    with scene.prometheus:
        first, second = scene.start(0), scene.start(1)
        scenes.ready(first, second)
        cluster.leader(QUEUE)
        wait_until(lambda: scene.value(f"sum({PREFIX}is_leader)") == 2, PATIENCE, "both leaderships to be scraped")
        scene.is_quiet()

        operate(cluster, "pause", QUEUE)
        firing = scene.fires("HighlanderPaused", QUEUE)
        assert ("HighlanderNobodyLeads", QUEUE) not in firing

        with contextlib.closing(psycopg2.connect(postgres.url().replace("+psycopg2", ""))) as stranger:
            stranger.autocommit = True
            stranger.cursor().execute("select pg_advisory_lock(%s)", (lock_key(NAMESPACE, QUEUE),))
            assert cluster.command("highlander", "resume", QUEUE, "--timeout", "0").returncode == 1  # nobody can yet
            scene.fires("HighlanderHeldButSilent", QUEUE)
            scene.fires("HighlanderNobodyLeads", QUEUE)
        scene.is_quiet()
        answers_every_panel(scene.prometheus)  # now that there has been a change

        second.send(signal.SIGTERM)
        scene.fires("HighlanderNoStandby")
        first.close()
        scene.fires("HighlanderNoNodes")


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.redis
@pytest.mark.prometheus
def test_alerts_fire_when_two_databases_have_a_leader_each_and_when_a_main_loop_hangs(
    cluster: Cluster, postgres: Database, postgres_server: Postgres
) -> None:
    other = postgres_server.create_database(f"{postgres.name}_other")
    lead_once(other.url(), [QUEUE, PROCESS])
    scene = Scene(cluster, [free_port(), free_port()])
    with scene.prometheus:
        hasty_worker = {"highlander_progress_timeout": 1.0, "highlander_on_stuck": "continue"}
        first, astray = scene.start(0, **hasty_worker), scene.start(1, highlander_url=other.url())
        scenes.ready(first, astray)
        firing = scene.fires("HighlanderTwoLead", QUEUE)
        assert "HighlanderNobodyLeads" not in {name for name, _ in firing}

        postgres.server.execute(f'alter database "{postgres.name}" allow_connections false')
        try:
            postgres.server.terminate_backends("highlander%")
            scene.fires("HighlanderSessionClosed", scene.instance(0))
        finally:
            postgres.server.execute(f'alter database "{postgres.name}" allow_connections true')
        astray.close()
        other.drop()

        first.send(signal.SIGUSR2)  # hangs the main loop
        scene.fires("HighlanderUnhealthy", scene.instance(0))


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.redis
@pytest.mark.prometheus
def test_alerts_fire_when_leaders_change_again_and_again_and_when_heartbeats_are_slow(
    cluster: Cluster, postgres: Database
) -> None:
    scene = Scene(cluster, [free_port(), free_port()])
    with scene.prometheus, TcpProxy("127.0.0.1", postgres.server.port) as proxy:
        timing = {"highlander_lease_duration": 6.0, "highlander_heartbeat_timeout": 2.0}
        workers = [scene.start(n, highlander_url=postgres.url(port=proxy.port), **timing) for n in range(2)]
        scenes.ready(*workers)
        wait_until(lambda: scene.value(f"sum({PREFIX}is_leader)") == 2, PATIENCE, "both leaderships to be scraped")
        # A standby has no heartbeats: its polls keep its session alive.
        leads = workers.index(cluster.leader(PROCESS))
        proxy.delay(0.35)
        scene.fires("HighlanderHeartbeatSlow", scene.instance(leads))
        proxy.heal()

        token = 0
        for _ in range(7):
            cluster.leader(QUEUE, other_than=token)
            token = cluster.token(QUEUE)
            scenes.terminate_leaders(cluster)
        scene.fires("HighlanderFlapping", QUEUE)


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.redis
@pytest.mark.prometheus
def test_an_alert_fires_when_a_process_fails_on_every_node(cluster: Cluster) -> None:
    cluster.conf["highlander_processes"] = {PROCESS: "tests.arena.shop:failing"}
    scene = Scene(cluster, [free_port(), free_port()])
    with scene.prometheus:
        scenes.ready(*(scene.start(number, env={"HIGHLANDER_ARENA_FAILS": "1"}) for number in range(2)))
        scene.fires("HighlanderProcessFails", PROCESS)


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.redis
@pytest.mark.prometheus
def test_alerts_fire_when_ticks_are_skipped_or_late(postgres: Database, redis_server: Redis, tmp_path: Path) -> None:
    redis_server.command("flushall")
    lead_once(postgres.url(), [BEAT])
    port = free_port()
    conf = {
        "highlander_http_address": f"127.0.0.1:{port}",
        "highlander_beat_missed": {"dropped": "skip", "made-up": "all"},
    }
    entries = {"dropped": {"seconds": 1.0}, "made-up": {"seconds": 1.0}}
    with BeatCluster(postgres.url(), {"broker_url": redis_server.url()}, tmp_path, entries, conf) as cluster:
        scene = Scene(cluster, [port])
        with scene.prometheus:
            cluster.start_beat()
            wait_until(lambda: scene.value(f"{PREFIX}ticks_sent_total") > 2, PATIENCE, "some ticks")
            operate(cluster, "pause", BEAT)
            scene.fires("HighlanderPaused", BEAT)
            assert {name for name, _ in scene.prometheus.firing()} <= {"HighlanderPaused", "HighlanderNoStandby"}
            operate(cluster, "resume", BEAT)
            scene.fires("HighlanderTicksSkipped")
            scene.fires("HighlanderTicksLate")


# -- what is shipped ---------------------------------------------------------------------------------------------------


def panel_queries() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


@pytest.mark.prometheus
def test_the_file_is_one_that_prometheus_loads_as_it_is() -> None:
    require(Prometheus.available())
    said = processes.run(["promtool", "check", "rules", str(MONITORING / "alerts.yaml")])
    assert f"SUCCESS: {len(FIRED_HERE)} rules found" in said


def test_every_alert_that_is_shipped_is_seen_firing_here() -> None:
    assert {rule["alert"] for rule in rules()} == FIRED_HERE


def test_alerts_and_panels_ask_for_metrics_that_there_are_and_the_dashboard_for_all() -> None:
    known = {name for metric in METRICS for name in names_of(metric.name, metric.kind)}
    used = re.compile(rf"{PREFIX}\w+")
    for expression in [*(rule["expr"] for rule in rules()), *panel_queries()]:
        assert used.findall(expression)
        assert {name.removeprefix(PREFIX) for name in used.findall(expression)} <= known, expression
    shown = {name.removeprefix(PREFIX).removesuffix("_bucket") for name in used.findall(json.dumps(DASHBOARD))}
    assert {metric.name for metric in METRICS} - shown == {"paused"}


def names_of(name: str, kind: str) -> set[str]:
    return {name + suffix for suffix in ("_bucket", "_sum", "_count")} if kind == "histogram" else {name}


def test_an_alert_explains_itself_with_labels_that_it_has() -> None:
    for rule in rules():
        shown = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        kept = re.findall(r"\bby \(([^)]*)\)", rule["expr"])
        labels = set(re.split(r",\s*", kept[0])) if kept else {"job", "instance", "singleton"}
        if "absent(" in rule["expr"]:
            labels = set()
        assert shown <= labels, rule["alert"]
        assert rule["annotations"]["summary"].endswith(".")


def test_the_panels_do_not_overlap() -> None:
    places: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not cells & places, panel["title"]
        assert at["x"] + at["w"] <= 24
        places |= cells
