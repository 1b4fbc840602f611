"""Flower and `celery events`, real ones, while leaders are killed again and again: no error; they show who leads."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from tests.arena.cluster import ROOT, Cluster
from tests.arena.processes import free_port
from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.conftest import lead_once
from tests.faults.scenes import PROCESS, QUEUE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.arena.servers import Database, Redis

LIMIT = 60.0
STORM = 8
"""Failovers."""


@pytest.fixture
def shop(postgres: Database, redis_server: Redis, tmp_path: Path) -> Iterator[Cluster]:
    redis_server.command("flushall")
    lead_once(postgres.url(), [QUEUE, PROCESS])
    conf = {"highlander_processes": {PROCESS: f"tests.arena.shop:{PROCESS}"}}
    with Cluster(postgres.url(), {"broker_url": redis_server.url()}, tmp_path, conf, pool="prefork") as cluster:
        yield cluster


class Monitor:
    """A program of Celery's that runs beside the workers."""

    def __init__(self, shop: Cluster, name: str, *words: str, **env: str) -> None:
        self.path = shop.directory / f"{name}.log"
        argv = [sys.executable, "-W", "ignore", "-m", "celery", "-A", shop.app_path, *words]
        environment = {**shop.environment(), **env}
        with self.path.open("w") as log:
            self._process = subprocess.Popen(argv, env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)

    @property
    def log(self) -> str:
        return self.path.read_text()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def storm(shop: Cluster) -> None:
    for number in range(STORM):
        token = shop.token(PROCESS)
        leader = shop.leader(PROCESS)
        if number % 2:
            shop.command("highlander", "step-down", PROCESS)
        else:
            leader.send(signal.SIGKILL)
            shop.start(*scenes.QUIET, "-X", QUEUE)
        shop.leader(PROCESS, other_than=token)
    scenes.ready(*(worker for worker in shop.workers if worker.is_running))


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.timeout(300)
def test_flower_and_celery_events_bear_a_storm_of_failovers_and_show_the_leader(shop: Cluster) -> None:
    for _ in range(2):
        shop.start(*scenes.QUIET, "-X", QUEUE, "-E")
    shop.leader(PROCESS)
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    flower = Monitor(
        shop, "flower", "flower", f"--port={port}", "--address=127.0.0.1", FLOWER_UNAUTHENTICATED_API="true"
    )
    events = Monitor(shop, "events", "events", "--dump", PYTHONUNBUFFERED="1")
    try:
        wait_until(lambda: _get(f"{address}/api/workers"), LIMIT, "Flower to answer")
        storm(shop)
        wait_until(lambda: events.log.count("highlander elected") >= STORM, LIMIT, "the elections to be shown")
        wait_until(lambda: "highlander stepped down" in events.log, LIMIT, "the step-downs to be shown")
        leader = f"{shop.leader(PROCESS).name}@arena"
        stats = _get(f"{address}/api/workers?refresh=1&workername={leader}")[leader]["stats"]
        assert stats["highlander"]["singletons"][PROCESS]["role"] == "leader"
        assert flower.is_running
        assert events.is_running
        for log in (flower.log, events.log):
            assert "Traceback" not in log
            assert "Error" not in log
        shoot(address, leader)
    finally:
        flower.close()
        events.close()


def shoot(address: str, leader: str) -> None:
    """Have a browser show the page of the leader, where there is one; keep the picture with the reports."""
    browser = shutil.which("chromium")
    if browser is None:
        return
    reports = ROOT / "reports"
    reports.mkdir(exist_ok=True)
    argv = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    options = ["--virtual-time-budget=8000", "--window-size=1200,900", f"--screenshot={reports / 'flower.png'}"]
    subprocess.run([*argv, *options, f"{address}/worker/{leader}"], capture_output=True, timeout=60, check=False)


def _get(url: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return dict(json.load(answer))
    except OSError:
        return {}
