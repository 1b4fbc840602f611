"""What applications and monitors hear of a skipped run: the signal `run_skipped`, and the event of that name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from celery.utils.saferepr import saferepr

from celery_highlander.tasks.events import SKIPPED_EVENT, key_in
from celery_highlander.tasks.singleton import SKIPPED
from tests.arena.monitor import Monitor
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.keyed import KeyedCluster

pytestmark = [pytest.mark.postgres, pytest.mark.redis]
LIMIT = 60.0
KEY = 'hold(account="one")'


@pytest.fixture
def monitor(keyed: KeyedCluster) -> Iterator[Monitor]:  # the fixture of that name
    found = Monitor(keyed.app)
    yield found
    found.close()


def skip(keyed: KeyedCluster, task_id: str) -> None:
    """Have a run skipped, whose key is held."""
    keyed.post("hold", "one", 0.0, task_id=task_id)
    result = keyed.app.AsyncResult(task_id)
    wait_until(lambda: result.state == "SUCCESS", LIMIT, f"{task_id} to be over")
    assert result.result == {"highlander_skipped": KEY}


def hold(keyed: KeyedCluster) -> None:
    keyed.post("hold", "one", 600, task_id="first")
    wait_until(lambda: keyed.held() == {"first": "held"}, LIMIT, "it to run")


@pytest.mark.parametrize("pool", ["prefork", pytest.param("threads", marks=pytest.mark.slow)])
def test_a_skipped_run_sends_its_signal_and_its_event(
    keyed: KeyedCluster,
    monitor: Monitor,
    pool: str,
) -> None:
    keyed.pool = pool
    worker = keyed.start("-E", concurrency=2)
    hold(keyed)
    skip(keyed, "second")
    wait_until(lambda: monitor.of(SKIPPED_EVENT), LIMIT, "the event")
    keyed.post("hold", "two", 0.0, task_id="third")
    wait_until(lambda: monitor.has("task-succeeded", "third"), LIMIT, "the event of a run that was not skipped")
    (event,) = monitor.of(SKIPPED_EVENT)
    assert (event["uuid"], event["key"], event["task"]) == ("second", KEY, "hold")
    assert event["hostname"] == f"{worker.name}@arena"
    assert monitor.has("task-succeeded", "second")
    (noted,) = (keyed.journals / "skipped").read_text().splitlines()
    task, task_id, key, pid = json.loads(noted)
    assert (task, task_id, key) == ("hold", "second", KEY)
    assert (pid in worker.children) if pool == "prefork" else (pid == worker.pid)


@pytest.mark.slow
def test_the_event_is_sent_as_long_as_task_events_are_enabled(
    keyed: KeyedCluster,
    monitor: Monitor,
) -> None:
    keyed.start(concurrency=2)
    hold(keyed)
    control = keyed.app.control
    skip(keyed, "unheard")
    wait_until(lambda: control.broadcast("enable_events", reply=True), LIMIT, "events to be enabled")
    skip(keyed, "heard")
    wait_until(lambda: monitor.has(SKIPPED_EVENT, "heard"), LIMIT, "the event")
    wait_until(lambda: control.broadcast("disable_events", reply=True), LIMIT, "events to be disabled")
    skip(keyed, "unheard too")
    wait_until(lambda: control.broadcast("enable_events", reply=True), LIMIT, "events to be enabled")
    skip(keyed, "heard again")
    wait_until(lambda: monitor.has(SKIPPED_EVENT, "heard again"), LIMIT, "the event")
    assert [event["uuid"] for event in monitor.of(SKIPPED_EVENT)] == ["heard", "heard again"]


@pytest.mark.parametrize("key", ["plain", "it's", "a\\b", "a\\'b", "two\nlines", '{"a": 1}', "", "ünï"])
def test_the_key_is_found_in_the_text_of_a_result(key: str) -> None:
    assert key_in(saferepr({SKIPPED: key}, maxlen=1024)) == key


@pytest.mark.parametrize("result", [None, 3, {"a": "b"}, {SKIPPED: 3}, [SKIPPED], SKIPPED])
def test_no_key_is_found_in_any_other_result(result: object) -> None:
    assert key_in(saferepr(result, maxlen=1024)) is None
