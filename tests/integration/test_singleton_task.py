"""Every option of a singleton task, and every way for its message to come, on real workers."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pytest
from celery import chord, group

from celery_highlander import skipped_key
from celery_highlander.errors import SingletonConflictError
from tests.arena.requirements import require
from tests.arena.run_cluster import PATIENCE, RunCluster, result_of, seconds_between
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery.canvas import Signature

    from tests.arena.servers import Postgres

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

LONG = 1.0
EX_CONFIG = 78
WAYS = [
    pytest.param(("redis", "prefork"), id="redis-prefork"),
    *(
        pytest.param(way, id="-".join(way), marks=[pytest.mark.slow, *marks])
        for way, marks in (
            (("rabbitmq", "prefork"), [pytest.mark.rabbitmq]),
            (("redis", "threads"), []),
            (("rabbitmq", "gevent"), [pytest.mark.rabbitmq]),
            (("redis", "solo"), []),
        )
    ),
]


@pytest.fixture(scope="module", params=WAYS)
def nodes(
    request: pytest.FixtureRequest, postgres_server: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunCluster]:
    """Two workers, `one` and `two`, for all tests: each test has a key of its own."""
    broker, pool = request.param
    servers = [request.getfixturevalue(f"{name}_server") for name in (broker, "redis")]
    require(type(servers[0]).available())
    database = postgres_server.create_database(f"singleton_task_{broker}_{pool}")
    urls = {"broker_url": servers[0].url(), "result_backend": servers[1].url()}
    with RunCluster(database.url(), urls, tmp_path_factory.mktemp("runs"), pool=pool) as made:
        for name in ("one", "two"):
            made.start_node(name, concurrency=4)
        yield made
    servers[1].command("FLUSHALL")
    database.drop()


@pytest.fixture
def shop(nodes: RunCluster) -> Iterator[RunCluster]:
    lengths = {worker.name: len(worker.log) for worker in nodes.workers}
    yield nodes
    for worker in nodes.workers:
        print(f"--- {worker.name}\n{worker.log[lengths[worker.name] :][-8000:]}")


@pytest.fixture
def key() -> str:
    return uuid.uuid4().hex


def sig(shop: RunCluster, task: str, *args: Any, on: str = "celery", **kwargs: Any) -> Signature:
    return shop.app.signature(task, args=args, kwargs=kwargs).set(queue=on)


# -- conflicts ---------------------------------------------------------------------------------------------------------


def test_a_run_is_skipped_while_its_key_is_held_and_succeeds_with_a_marker(shop: RunCluster, key: str) -> None:
    run = shop.begin("skips", key, LONG, on="one")
    second = shop.call("skips", key, on="two")
    assert skipped_key(result_of(second)) == key
    assert second.state == "SUCCESS"
    first = shop.app.AsyncResult(run.task_id)
    assert skipped_key(result_of(first)) is None
    assert skipped_key(result_of(shop.call("skips", key, on="two"))) is None
    assert len(shop.runs(key)) == 2


def test_other_keys_run_beside_it(shop: RunCluster, key: str) -> None:
    first = shop.begin("skips", key, LONG, on="one")
    second = shop.begin("skips", f"{key}-2", LONG, on="two")
    for run in (first, second):
        result_of(shop.app.AsyncResult(run.task_id))
    first, second = shop.runs(key)[0], shop.runs(f"{key}-2")[0]
    assert first.first < second.last
    assert second.first < first.last


def test_a_run_raises_while_its_key_is_held(shop: RunCluster, key: str) -> None:
    run = shop.begin("skips", key, LONG, on="one")
    result = shop.call("raises", key, on="two")
    with pytest.raises(SingletonConflictError, match=f"{key} is held, by task {run.task_id}"):
        result_of(result)
    assert result.state == "FAILURE"


def test_a_run_is_retried_while_its_key_is_held_without_using_its_retries_up(shop: RunCluster, key: str) -> None:
    run = shop.begin("skips", key, LONG, on="one")
    second = shop.call("retries", key, on="two")
    wait_until(lambda: second.state == "RETRY", PATIENCE, "a retry")
    returned = result_of(second)  # max_retries is 0
    assert returned["task_id"] == second.id
    assert returned["retries"] == 0
    assert len(shop.runs(key, second.id)) == 1
    assert shop.runs(key, second.id)[0].first > shop.runs(key, run.task_id)[0].last


def test_a_run_goes_back_to_its_queue_while_its_key_is_held(shop: RunCluster, key: str) -> None:
    run = shop.begin("skips", key, 2.0, on="one")
    second = shop.call("requeues", key, on="two")
    assert result_of(second)["task_id"] == second.id
    assert len(shop.runs(key, second.id)) == 1
    assert shop.runs(key, second.id)[0].first > shop.runs(key, run.task_id)[0].last
    (two,) = (worker for worker in shop.workers if worker.name == "two")
    assert 1 < two.log.count(f"[{second.id}] received") < 8


def test_runs_wait_for_each_other(shop: RunCluster, key: str) -> None:
    results = [shop.call("waits", key, 0.1, on=on) for on in ("one", "two", "one", "two")]
    returned = [result_of(result) for result in results]
    assert [one["task_id"] for one in returned] == [result.id for result in results]
    assert len([run for run in shop.runs(key) if run.finished]) == 4
    shop.referee().verdict(key)


def test_a_run_that_has_waited_long_enough_is_retried(shop: RunCluster, key: str) -> None:
    run = shop.begin("skips", key, LONG, on="one")
    second = shop.call("impatient", key, on="two")
    wait_until(lambda: second.state == "RETRY", PATIENCE, "a retry")
    assert result_of(second)["retries"] == 0
    assert shop.runs(key, second.id)[0].first > shop.runs(key, run.task_id)[0].last


def test_a_function_decides_what_becomes_of_a_run(shop: RunCluster, key: str) -> None:
    run = shop.begin("skips", key, LONG, on="one")
    second = shop.call("decides", key, on="two")
    assert result_of(second) == f"decides[{second.id}]: {key} is held, by task {run.task_id}."


@pytest.mark.slow
def test_a_run_is_skipped_on_the_node_that_holds_its_key(shop: RunCluster, key: str) -> None:
    if shop.pool == "solo":
        pytest.skip("one run at a time")
    shop.begin("skips", key, LONG, on="one")
    assert skipped_key(result_of(shop.call("skips", key, on="one"))) == key


def test_as_many_runs_as_the_limit_says_run_at_once(shop: RunCluster, key: str) -> None:
    if shop.pool == "solo":
        pytest.skip("one run at a time on each of two nodes")
    runs = [shop.begin("pairs", key, LONG, on=on) for on in ("one", "two")]
    assert [skipped_key(result_of(shop.call("pairs", key, on=on))) for on in ("one", "two")] == [key, key]
    for run in runs:
        assert skipped_key(result_of(shop.app.AsyncResult(run.task_id))) is None
    assert skipped_key(result_of(shop.call("pairs", key))) is None
    assert shop.referee().max_concurrency(key) == 2


# -- fencing -----------------------------------------------------------------------------------------------------------


def test_a_fenced_run_has_a_token_that_rises_from_node_to_node(shop: RunCluster, key: str) -> None:
    tokens = [result_of(shop.call("fenced", key, on=on))["token"] for on in ("one", "two", "one")]
    assert tokens == sorted(set(tokens))
    assert result_of(shop.call("waits", key))["token"] is None


def test_a_transaction_of_a_run_that_is_over_is_refused(shop: RunCluster, key: str) -> None:
    assert result_of(shop.call("fences", key)) == "fenced"
    assert result_of(shop.call("fences_later", key)) == "stale"


# -- declarations ------------------------------------------------------------------------------------------------------


def test_a_task_is_singleton_however_it_is_declared(shop: RunCluster, key: str) -> None:
    based = shop.call("based", key)
    assert result_of(based) == [f'based(key="{key}")', based.id]
    assert result_of(shop.call("before", key)) == f'before(key="{key}")'
    assert result_of(shop.call("alone")) == "alone"


def test_a_base_with_a_call_of_its_own_is_called_within_the_lock(shop: RunCluster, key: str) -> None:
    assert result_of(shop.call("in_context", key)) == [f'in_context(key="{key}")', 1]


def test_keys_are_the_same_however_the_arguments_are_given(shop: RunCluster) -> None:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((5,), {}),
        ((5, "plain"), {}),
        ((), {"kind": "plain", "what": 5}),
        ((), {"what": 5, "kind": "plain", "other": 7}),
    ]
    keys = {result_of(shop.call("keyed", *args, **kwargs)) for args, kwargs in calls}
    assert keys == {'keyed(what=5, kind="plain")'}


def test_different_arguments_make_different_keys(shop: RunCluster) -> None:
    values = [uuid.UUID(int=7), dt.date(2026, 2, 3), 5, "5", True, None, 5.5, [5], {"a": 1}]
    keys = [result_of(shop.call("keyed", value)) for value in values]
    assert len(set(keys)) == len(values)
    assert all(one != other for one, other in combinations(keys, 2))
    assert result_of(shop.call("of_function", 5)) == result_of(shop.call("of_function", what=5, kind="plain"))


def test_arguments_that_do_not_fit_the_task_fail_it_as_ever(shop: RunCluster) -> None:
    result = shop.call("keyed", nonsense=1)
    result.get(timeout=PATIENCE, propagate=False)
    assert result.state == "FAILURE"


# -- canvases ----------------------------------------------------------------------------------------------------------


def test_a_chain_goes_on_with_the_marker_after_a_skipped_task(shop: RunCluster, key: str) -> None:
    shop.begin("skips", key, LONG, on="one")
    result = (sig(shop, "skips", key, on="two") | sig(shop, "tests.arena.run_shop.echo")).apply_async()
    (marker,) = result_of(result)
    assert skipped_key(marker) == key


def test_a_chord_is_completed_by_a_skipped_member(shop: RunCluster, key: str) -> None:
    shop.begin("skips", key, LONG, on="one")
    members = [sig(shop, "skips", key, on="two"), sig(shop, "skips", f"{key}-2", on="two")]
    ((one, other),) = result_of(chord(members)(sig(shop, "tests.arena.run_shop.echo")))
    assert skipped_key(one) == key
    assert skipped_key(other) is None


def test_the_members_of_a_group_wait_for_each_other(shop: RunCluster, key: str) -> None:
    members = group(sig(shop, "waits", key, 0.05, on=on) for on in ("one", "two", "one"))
    assert len(result_of(members.apply_async())) == 3
    shop.referee().verdict(key)


@pytest.mark.slow
def test_the_members_of_a_chord_are_retried_and_complete_it(shop: RunCluster, key: str) -> None:
    members = [sig(shop, task, key, 0.3, on=on) for task in ("retries", "requeues") for on in ("one", "two")]
    ((*returned,),) = result_of(chord(members)(sig(shop, "tests.arena.run_shop.echo")))
    assert len({one["task_id"] for one in returned}) == 4
    shop.referee().verdict(key)


@pytest.mark.slow
def test_a_chain_goes_on_after_a_retried_task_and_links_are_called_once(shop: RunCluster, key: str) -> None:
    shop.begin("skips", key, LONG, on="one")
    for task in ("retries", "requeues"):
        linked = shop.app.signature("linked", args=(f"{key}-{task}",), immutable=True).set(queue="celery")
        first = sig(shop, task, key, on="two")
        first.link(linked)
        (returned,) = result_of((first | sig(shop, "tests.arena.run_shop.echo")).apply_async())
        assert returned["retries"] == 0
        runs = wait_until(lambda task=task: shop.runs(f"{key}-{task}"), PATIENCE, "the link to be called")  # type: ignore[misc]
        assert len(runs) == 1


def test_a_task_with_a_countdown_takes_its_key_when_it_runs(shop: RunCluster, key: str) -> None:
    later = sig(shop, "skips", key, on="two").apply_async(countdown=1.0)
    assert skipped_key(result_of(shop.call("skips", key, on="one"))) is None
    assert skipped_key(result_of(later)) is None


# -- other ways to run it ----------------------------------------------------------------------------------------------


def test_eager_runs_have_a_keeper_of_their_own_and_plain_calls_have_none(shop: RunCluster, key: str) -> None:
    run = shop.begin("skips", key, 600.0, on="one") if shop.pool != "solo" else shop.begin("skips", key, 6.0, on="one")
    said = json.loads(
        shop.script(
            f"""
import os
from celery_highlander import skipped_key
tasks = app.tasks
said = {{}}
said["plain call"] = in_context({key!r})
said["no keeper yet"] = "HIGHLANDER_KEEPER" in " ".join(os.environ)
said["apply"] = skipped_key(tasks["skips"].apply((({key!r}),)).get())
said["another key"] = tasks["skips"].apply(({key!r} + "-2",)).get()["retries"]
app.conf.task_always_eager = True
said["delay"] = skipped_key(tasks["skips"].delay({key!r}).get())
said["retries"] = type(tasks["impatient"].apply(({key!r},)).result).__name__
print(json.dumps(said))
"""
        )
    )
    assert said == {
        "plain call": [key, 1],
        "no keeper yet": False,
        "apply": key,
        "another key": 0,
        "delay": key,
        "retries": "SingletonConflictError",
    }
    shop.app.control.revoke(run.task_id, terminate=shop.pool == "prefork", signal="SIGKILL")


@pytest.mark.slow
def test_tasks_of_a_beat_are_singleton(shop: RunCluster, key: str) -> None:
    shop.begin("skips", key, 5.0, on="one")
    schedule = {"often": {"task": "skips", "schedule": 0.2, "args": [key], "options": {"queue": "two"}}}
    beat = shop.start_beat("-s", str(shop.directory / key), "--max-interval", "1", beat_schedule=schedule)
    try:
        wait_until(lambda: len(shop.runs(key)) > 2, PATIENCE, "runs of the beat's messages")
    finally:
        beat.close()
    runs = shop.runs(key)
    shop.referee().verdict(key)
    assert seconds_between(runs[0], runs[1]) >= 0
    assert any(f"is skipped: {key}" in worker.log for worker in shop.workers)


def test_a_wrong_option_is_reported_by_the_worker_once_and_without_a_traceback(shop: RunCluster) -> None:
    if shop.pool != "prefork":
        pytest.skip("the pool is not reached")
    worker = shop.start("-Q", "nothing", env={"HIGHLANDER_ARENA_WRONG": "1"}, name="wrong")
    try:
        assert worker.wait(PATIENCE) == EX_CONFIG, worker.log
        assert "Traceback" not in worker.log
        assert "wrong: on_conflict = 'explode'" in worker.log
        assert "wrong_key: unique_on names 'wat'" in worker.log
        assert worker.log.count("celery-highlander cannot work") == 1
    finally:
        shop.workers.remove(worker)
        worker.close()
