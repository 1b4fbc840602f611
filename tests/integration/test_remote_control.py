"""`celery inspect` and `celery control` of a worker, the events that monitors get, and the banner."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

from celery_highlander.worker import monitoring
from tests.arena.cluster import Cluster
from tests.arena.monitor import Monitor
from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.conftest import lead_once
from tests.faults.scenes import PROCESS, QUEUE
from tests.integration.commands import PASSWORD

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.arena.servers import Database, Redis

pytestmark = pytest.mark.postgres


@pytest.fixture
def shop(postgres: Database, redis_server: Redis, tmp_path: Path) -> Iterator[Cluster]:
    redis_server.command("flushall")
    lead_once(postgres.url(), [QUEUE, PROCESS])
    conf = {"highlander_processes": {PROCESS: f"tests.arena.shop:{PROCESS}"}}
    url = postgres.url(password=PASSWORD)
    with Cluster(url, {"broker_url": redis_server.url()}, tmp_path, conf) as cluster:
        yield cluster


@pytest.fixture
def monitor(shop: Cluster) -> Iterator[Monitor]:
    found = Monitor(Celery("monitor", broker=shop.conf["broker_url"], set_as_current=False))
    yield found
    found.close()


def start(shop: Cluster, workers: int = 2) -> None:
    """Start workers, the first of which leads everything."""
    for number in range(workers):
        shop.start(*scenes.QUIET, "-X", QUEUE, *(() if number else ("--highlander-priority", "1")))
        if not number:
            shop.leader(PROCESS)
            shop.leader(QUEUE)
    scenes.ready(*shop.workers)
    late = shop.workers[-1]
    wait_until(lambda: "processes can run here" in late.log, scenes.PATIENCE, "it to run processes")


def control(shop: Cluster, *words: str) -> str:
    """What a worker answers to `celery control`."""
    done = shop.command("control", *words)
    assert "Traceback" not in done.stderr
    return f"{done.stdout} {done.stderr}"


def shown(shop: Cluster, worker: str, name: str) -> dict[str, Any]:
    """What `celery inspect highlander` has on a singleton."""
    done = shop.command("inspect", "highlander", "-d", worker, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout)[worker]["singletons"][name])


def test_a_worker_steps_down_pauses_and_resumes_by_remote_control(shop: Cluster) -> None:
    start(shop)
    assert shown(shop, "w1@arena", PROCESS)["role"] == "leader"
    assert "stepping down" in control(shop, "highlander_step_down", PROCESS, "-d", "w1@arena")
    token = shop.token(PROCESS)
    assert "does not lead" in control(shop, "highlander_pause", PROCESS, "-d", "w1@arena")
    wait_until(lambda: shop.leader(PROCESS).name == "w2", scenes.PATIENCE, "the other worker to lead")
    entry = shown(shop, "w1@arena", PROCESS)
    assert (entry["role"], entry["paused"]) == ("standby", True)
    assert shop.leader(QUEUE).name == "w1"

    assert "does not lead" in control(shop, "highlander_step_down", PROCESS, "-d", "w1@arena")
    assert "may lead" in control(shop, "highlander_resume", PROCESS, "-d", "w1@arena")
    shop.workers[1].send(signal.SIGKILL)
    wait_until(lambda: shop.leader(PROCESS).name == "w1", scenes.PATIENCE, "the first worker to lead again")
    assert shop.token(PROCESS) > token
    shop.referee().verdict(PROCESS)


@pytest.mark.slow
def test_a_wrong_name_is_answered_in_a_sentence(shop: Cluster) -> None:
    start(shop, 1)
    for command in ("highlander_step_down", "highlander_pause", "highlander_resume"):
        said = control(shop, command, "tickr", "-d", "w1@arena")
        assert "there is no singleton 'tickr' here. Did you mean 'ticker'?" in said
        assert "there is no singleton ''" in control(shop, command, "-d", "w1@arena")
    assert "Traceback" not in shop.workers[0].log


def test_monitors_hear_of_every_change_without_task_events(shop: Cluster, monitor: Monitor) -> None:
    start(shop)
    elected = wait_until(lambda: monitor.of(monitoring.ELECTED), scenes.PATIENCE, "the event of the election")
    assert {event["singleton"] for event in elected} <= {QUEUE, PROCESS}
    assert all(event["hostname"] == "w1@arena" and event["token"] for event in elected)
    shop.command("highlander", "step-down", PROCESS, "--reason", "test")
    (down,) = wait_until(lambda: monitor.of(monitoring.STEPPED_DOWN), scenes.PATIENCE, "the event of the step-down")
    assert (down["singleton"], down["hostname"]) == (PROCESS, "w1@arena")
    assert down["reason"].endswith(": test")
    shop.command("highlander", "fence", PROCESS, "--yes")
    lost = wait_until(lambda: monitor.of(monitoring.LOST), scenes.PATIENCE, "the event of the loss")
    assert lost[0]["hostname"] == "w2@arena"
    assert not [event for event in monitor.events if event["type"].startswith("task-")]


@pytest.mark.slow
def test_monitors_hear_of_a_wait_for_a_predecessor_and_of_a_process_that_keeps_failing(
    shop: Cluster, monitor: Monitor
) -> None:
    shop.conf["highlander_processes"] = {"broken": "tests.arena.shop:failing"}
    worker = shop.start(*scenes.QUIET, "-X", QUEUE, env={"HIGHLANDER_ARENA_FAILS": "1"})
    wait_until(lambda: monitor.of(monitoring.TAKEOVER_WAITING), scenes.PATIENCE, "the event of the very first wait")
    failed = wait_until(lambda: monitor.of(monitoring.SINGLETON_FAILED), 60, "the event of the failing process")
    assert failed[0]["singleton"] == "broken"
    assert "keeps ending" in failed[0]["reason"]
    assert worker.is_running


def test_the_banner_lists_the_singletons_and_the_database_without_its_password(shop: Cluster) -> None:
    worker = shop.start(*scenes.QUIET, "-X", QUEUE)
    scenes.ready(worker)
    banner = worker.log.partition("[highlander]")[2].partition("[tasks]")[0]
    assert f"  . {QUEUE} (queue)" in banner
    assert f"  . {PROCESS} (process)" in banner
    assert "namespace 'shop' in postgresql+psycopg2://" in banner
    assert PASSWORD not in worker.log
