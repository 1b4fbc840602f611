"""The alert rules, in a real Prometheus that scrapes real workers: each fires when its condition is produced."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from celery_highlander.worker.metrics import METRICS, PREFIX
from tests.arena.beats import BeatCluster
from tests.arena.cluster import Cluster
from tests.arena.processes import free_port
from tests.arena.proxy import TcpProxy
from tests.arena.requirements import require
from tests.arena.waiting import wait_until
from tests.docs.pages import ROOT
from tests.faults import scenes
from tests.faults.conftest import lead_once
from tests.faults.scenes import PROCESS, QUEUE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.arena.servers import Database, Redis

RULES = ROOT / "docs/monitoring/alerts.yaml"
DASHBOARD = ROOT / "docs/monitoring/grafana.json"
LIMIT = 60.0
SHORT = {"5m": "15s", "10m": "20s", "15m": "20s", "1m": "4s"}
"""What the rules' durations are in the tests."""


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return list(group["rules"])


def shortened() -> dict[str, Any]:
    """The rules, with shorter times."""
    made = []
    for rule in rules():
        expression = re.sub(r"\[(\w+)\]", lambda match: f"[{SHORT[match[1]]}]", rule["expr"])
        made.append({**rule, "expr": expression, "for": "1s" if "for" in rule else "0s"})
    return {"groups": [{"name": "celery-highlander", "rules": made}]}


class Prometheus:
    """A Prometheus that scrapes the given ports twice a second."""

    def __init__(self, directory: Path, ports: list[int]) -> None:
        directory.mkdir()
        (directory / "alerts.yaml").write_text(yaml.safe_dump(shortened()))
        scrape = {"job_name": "workers", "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}
        every = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
        config = {"global": every, "rule_files": ["alerts.yaml"], "scrape_configs": [scrape]}
        (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
        self.port = free_port()
        self._process = subprocess.Popen(
            [
                *("prometheus", f"--config.file={directory / 'prometheus.yaml'}"),
                *(f"--storage.tsdb.path={directory / 'data'}", f"--web.listen-address=127.0.0.1:{self.port}"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: self._has_scraped(len(ports)), LIMIT, "every target to be scraped")

    def _has_scraped(self, count: int) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/query?query=up==1", timeout=5) as answer:
                return len(json.load(answer)["data"]["result"]) == count
        except OSError:
            return False

    def firing(self) -> dict[str, list[dict[str, str]]]:
        """The labels of the alerts that fire, by name."""
        found: dict[str, list[dict[str, str]]] = {}
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/alerts", timeout=5) as answer:
                alerts = json.load(answer)["data"]["alerts"]
        except OSError:
            return {}  # it is about to start
        for alert in alerts:
            if alert["state"] == "firing":
                found.setdefault(alert["labels"]["alertname"], []).append(alert["labels"])
        return found

    def fires(self, name: str, **labels: str) -> dict[str, str]:
        """Wait until the alert fires with these labels."""

        def found() -> dict[str, str]:
            firing = self.firing().get(name, [])
            return next((one for one in firing if labels.items() <= one.items()), {})

        return wait_until(found, LIMIT, f"the alert {name}")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def shop(postgres: Database, redis_server: Redis, tmp_path: Path) -> Iterator[Cluster]:
    require("prometheus is not installed" if shutil.which("prometheus") is None else None)
    redis_server.command("flushall")
    lead_once(postgres.url(), [QUEUE, PROCESS, "beat", "broken"])
    conf = {"highlander_processes": {PROCESS: f"tests.arena.shop:{PROCESS}"}}
    with Cluster(postgres.url(), {"broker_url": redis_server.url()}, tmp_path, conf, pool="prefork") as cluster:
        yield cluster


def start(shop: Cluster, count: int, **conf: Any) -> list[int]:
    ports = [free_port() for _ in range(count)]
    for port in ports:
        shop.start(*scenes.QUIET, "-X", QUEUE, "--highlander-http-address", f"127.0.0.1:{port}", **conf)
    scenes.ready(*shop.workers)
    return ports


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.timeout(400)
def test_each_alert_fires_when_its_condition_is_produced(shop: Cluster, postgres: Database, tmp_path: Path) -> None:
    failing = {"highlander_processes": {"broken": "tests.arena.shop:failing"}}
    slow = TcpProxy("127.0.0.1", postgres.server.port).start()
    ports = start(shop, 2)
    shop.leader(PROCESS)
    shop.leader(QUEUE)
    ports += start(shop, 1, conf={"highlander_namespace": "twin"})  # another cluster, with the same names
    ports += start(shop, 1, conf={**failing, "highlander_queues": []}, env={"HIGHLANDER_ARENA_FAILS": "1"})
    slow_url = postgres.url(host=slow.host, port=slow.port)
    delayed = {"highlander_url": slow_url, "highlander_namespace": "slow", "highlander_queues": ["slow"], **SLOW}
    ports += start(shop, 1, conf=delayed)
    prometheus = Prometheus(tmp_path / "prometheus", ports)
    try:
        slow.delay(0.3)
        prometheus.fires("HighlanderTwoLead", singleton=QUEUE)
        prometheus.fires("HighlanderProcessFails", singleton="broken")
        prometheus.fires("HighlanderSlowHeartbeats")
        slow.delay(0.0)
        shop.workers[2].send(signal.SIGTERM)  # the twin
        wait_until(lambda: "HighlanderTwoLead" not in prometheus.firing(), LIMIT, "one leader to be enough again")

        assert shop.command("highlander", "pause", PROCESS).returncode == 0
        prometheus.fires("HighlanderNobodyLeads", singleton=PROCESS)
        shop.command("highlander", "resume", PROCESS)
        for _ in range(7):
            shop.command("highlander", "step-down", PROCESS)
        prometheus.fires("HighlanderFlapping", singleton=PROCESS)

        postgres.server.execute(f'alter database "{postgres.name}" allow_connections false')
        postgres.server.terminate_backends("highlander%")
        prometheus.fires("HighlanderNoLockSession")
        postgres.server.execute(f'alter database "{postgres.name}" allow_connections true')
        wait_until(lambda: "HighlanderNoLockSession" not in prometheus.firing(), LIMIT, "the sessions to be back")
    finally:
        prometheus.close()
        slow.close()


SLOW = {
    "highlander_lease_duration": 12.0,
    "highlander_heartbeat_timeout": 5.0,
    "highlander_processes": {},
}


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.timeout(200)
def test_ticks_that_are_skipped_are_told(
    shop: Cluster, postgres: Database, redis_server: Redis, tmp_path: Path
) -> None:
    beat_port = free_port()
    conf = {"highlander_http_address": f"127.0.0.1:{beat_port}", "highlander_beat_missed": "latest"}
    (tmp_path / "beat").mkdir()
    entries = {"often": {"seconds": 0.5}}
    with BeatCluster(postgres.url(), {"broker_url": redis_server.url()}, tmp_path / "beat", entries, conf) as beats:
        beat = beats.start_beat()
        wait_until(lambda: beats.acting().get("beat"), LIMIT, "the beat to be active")
        prometheus = Prometheus(tmp_path / "prometheus", [beat_port])
        try:
            beats.command("highlander", "pause", "beat")
            beats.command("highlander", "resume", "beat")
            prometheus.fires("HighlanderTicksSkipped")
            assert beat.is_running
            assert not shop.workers
        finally:
            prometheus.close()


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.timeout(200)
def test_work_that_does_not_stop_is_told(shop: Cluster, tmp_path: Path) -> None:
    port = free_port()
    options = ("-P", "solo", "--highlander-http-address", f"127.0.0.1:{port}")
    shop.start(*scenes.QUIET, "-X", QUEUE, *options, conf={"highlander_on_stuck": "continue"})
    shop.leader(QUEUE)
    shop.app.send_task("tests.arena.shop.sleeps", args=(0, 600.0), queue=QUEUE)
    wait_until(lambda: shop.referee().task_runs(QUEUE), LIMIT, "a task that cannot be interrupted")
    prometheus = Prometheus(tmp_path / "prometheus", [port])
    try:
        shop.command("highlander", "fence", QUEUE, "--yes", "--timeout", "1")
        prometheus.fires("HighlanderHeldButSilent", singleton=QUEUE)
    finally:
        prometheus.close()


def test_the_rules_are_sound_and_name_metrics_that_there_are() -> None:
    known = {PREFIX + metric.name for metric in METRICS}
    known |= {f"{PREFIX}{metric.name}_bucket" for metric in METRICS if metric.kind == "histogram"}
    for rule in rules():
        assert set(re.findall(rf"{PREFIX}\w+", rule["expr"])) <= known
        assert rule["labels"]["severity"] in ("warning", "critical")
    board = json.loads(DASHBOARD.read_text())
    shown = {name for panel in board["panels"] for target in panel["targets"] for name in _metrics(target["expr"])}
    assert shown <= known
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    if shutil.which("promtool") is not None:
        done = subprocess.run(["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def _metrics(expression: str) -> list[str]:
    return re.findall(rf"{PREFIX}\w+", expression)
