"""What the public tests of celery-singleton and celery-once say, where it holds here too, told anew on real workers."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
import uuid
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from celery import chain, chord, group
from kombu.exceptions import OperationalError

from celery_highlander import skipped_key
from celery_highlander.errors import SingletonConflictError
from celery_highlander.tasks import waiting
from celery_highlander.tasks.sweep import sweep
from tests.arena.cluster import ROOT
from tests.arena.processes import free_port
from tests.arena.run_cluster import PATIENCE, RunCluster
from tests.arena.waiting import wait_until
from tests.arena.waiting_shop import make_app, released

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery
    from celery.result import AsyncResult

    from tests.arena.servers import Postgres, Redis

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


class WaitingCluster(RunCluster):
    """A worker of the app, and the app in this process, which calls its tasks as a web server does."""

    app_path: ClassVar[str] = "tests.arena.waiting_shop"
    caller: Celery

    def delay(self, task: str, *args: Any, **kwargs: Any) -> AsyncResult:
        """Call a task."""
        return self.caller.tasks[task].delay(*args, **kwargs)

    def hold(self, task: str, key: str) -> AsyncResult:
        """Call a task, and return when it runs; it does until its key is released."""
        result = self.delay(task, key, "hold")
        wait_until(lambda: self.holders(key) == [result.id], PATIENCE, f"{task} to hold its key")
        return result

    def holders(self, key: str) -> list[str]:
        """The ids of the tasks that hold the key, by the database."""
        rows = self.query("select task_id from highlander_run where name like %s", f"%{key}%")
        return [task_id for (task_id,) in rows]

    def waiting(self, key: str) -> list[str]:
        """The ids of the tasks that wait for the key, or run under it."""
        rows = self.query("select task_id from highlander_waiting where name like %s", f"%{key}%")
        return [task_id for (task_id,) in rows]

    def release(self, key: str) -> None:
        """Let the runs of a key end."""
        released(key, str(self.journals)).touch()


def _connected(cluster: WaitingCluster, **conf: Any) -> Celery:
    backend = f"tests.arena.run_cluster.PolledRedis+{cluster.conf['result_backend']}"
    return make_app({**cluster.conf, "result_backend": backend, **conf})


@pytest.fixture(scope="module")
def node(
    postgres_server: Postgres, redis_server: Redis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WaitingCluster]:
    """One worker for all tests: each test has a key of its own."""
    database = postgres_server.create_database("singleton_task_peers")
    urls = {"broker_url": redis_server.url(), "result_backend": redis_server.url(db=1)}
    with WaitingCluster(database.url(), urls, tmp_path_factory.mktemp("peers")) as made:
        made.caller = _connected(made)
        made.start_node("one", concurrency=4)
        yield made
        waiting.let_go(made.caller)
        made.caller.close()
    redis_server.command("FLUSHALL")
    database.drop()


@pytest.fixture
def shop(node: WaitingCluster) -> Iterator[WaitingCluster]:
    lengths = {worker.name: len(worker.log) for worker in node.workers}
    yield node
    for worker in node.workers:
        print(f"--- {worker.name}\n{worker.log[lengths[worker.name] :][-8000:]}")


@pytest.fixture
def key() -> str:
    return uuid.uuid4().hex


def got(result: AsyncResult) -> Any:
    return result.get(timeout=PATIENCE, interval=0.01)


# -- sending -----------------------------------------------------------------------------------------------------------


def test_ten_calls_alike_while_one_waits_or_runs_are_one_message_and_each_caller_gets_its_id(
    shop: WaitingCluster, key: str
) -> None:
    late = shop.caller.tasks["both"].apply_async((key, "hold"), countdown=1.0)
    results = [shop.delay("both", key) for _ in range(5)]
    wait_until(lambda: shop.holders(key) == [late.id], PATIENCE, "it to run")
    results += [shop.delay("both", key) for _ in range(5)]
    assert {result.id for result in results} == {late.id}
    shop.release(key)
    assert got(late)["task_id"] == late.id
    assert shop.workers[0].log.count(f"{late.id}] received") == 1


def test_calls_with_other_arguments_are_sent(shop: WaitingCluster, key: str) -> None:
    shop.hold("both", key)
    others = [shop.delay("both", f"{key}-{number}") for number in range(3)]
    assert len({got(result)["task_id"] for result in others}) == 3
    shop.release(key)


def test_a_call_alike_is_sent_as_soon_as_the_result_is_there(shop: WaitingCluster, key: str) -> None:
    seen = set()
    for _ in range(40):
        result = shop.delay("both", key)
        assert got(result)["task_id"] == result.id
        seen.add(result.id)
    assert len(seen) == 40


@pytest.mark.parametrize("task", ["both", pytest.param("both_careless", marks=pytest.mark.slow)])
def test_a_run_that_fails_frees_its_key(shop: WaitingCluster, key: str, task: str) -> None:
    for _ in range(2):
        result = shop.delay(task, key, "raise")
        with pytest.raises(ValueError, match="as asked"):
            got(result)
    assert got(shop.delay(task, key))["retries"] == 0


def test_handlers_that_forget_their_base_keep_no_key(shop: WaitingCluster, key: str) -> None:
    first, second = (got(shop.delay("both_careless", key)) for _ in range(2))
    assert first["task_id"] != second["task_id"]


def test_a_refused_call_carries_the_id_of_what_waits_or_runs(shop: WaitingCluster, key: str) -> None:
    first = shop.hold("refuses", key)
    for send in (shop.caller.tasks["refuses"].delay, lambda key: shop.caller.tasks["refuses"].apply_async((key,))):
        with pytest.raises(SingletonConflictError, match=first.id) as caught:
            send(key)
        assert caught.value.task_id == first.id
        assert key in caught.value.key
    shop.release(key)
    got(first)
    assert got(shop.delay("refuses", key))["retries"] == 0


def test_where_the_broker_refuses_the_message_its_error_comes_through_and_the_key_is_free(
    shop: WaitingCluster, key: str
) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    cut_off = _connected(shop, broker_url=url, broker_transport_options={"max_retries": 0})
    try:
        with pytest.raises(OperationalError):
            cut_off.tasks["both"].apply_async((key,), retry=False)
    finally:
        waiting.let_go(cut_off)
        cut_off.close()
    assert shop.waiting(key) == []
    assert got(shop.delay("both", key))["retries"] == 0


def test_values_of_every_type_that_messages_carry_are_known_again(shop: WaitingCluster, key: str) -> None:
    one, other = uuid.UUID(int=7), uuid.UUID(int=8)
    values: list[Any] = [one, other, dt.date(2026, 2, 3), Decimal("5.5"), b"\x00", (1, [2]), {"ä": {"ö": None}}, "1", 1]
    late = [shop.caller.tasks["both"].apply_async((key,), {"value": value}, countdown=1.0) for value in values]
    again = [shop.delay("both", key, value=value) for value in values]
    assert [result.id for result in again] == [result.id for result in late]
    assert len({got(result)["task_id"] for result in late}) == len(values)
    assert got(shop.delay("both", key, value=one))["task_id"] not in {result.id for result in late}


def test_apps_of_two_namespaces_do_not_lock_each_other_out(shop: WaitingCluster, key: str) -> None:
    first = shop.hold("both", key)
    other = _connected(shop, highlander_namespace="other")
    try:
        sent = other.tasks["both"].delay(key)
        assert sent.id != first.id
        assert skipped_key(got(sent)) is not None  # the worker's namespace is the first one
    finally:
        waiting.let_go(other)
        other.close()
    shop.release(key)


# -- running -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["retry", "autoretry"])
def test_a_retry_is_no_duplicate_of_itself_and_keeps_its_place(shop: WaitingCluster, key: str, how: str) -> None:
    result = shop.delay("retried", key, how)
    assert shop.delay("retried", key, how).id == result.id
    assert got(result) == {"task_id": result.id, "retries": 1}
    assert got(shop.delay("retried", key))["retries"] == 0


def test_with_the_scope_queue_another_message_may_be_sent_from_the_runs_first_instruction(
    shop: WaitingCluster, key: str
) -> None:
    first = shop.hold("queue", key)
    wait_until(lambda: shop.waiting(key) == [], PATIENCE, "its first instruction")
    second, third = shop.delay("queue", key), shop.delay("queue", key)
    assert second.id != first.id
    assert third.id == second.id
    wait_until(lambda: second.state == "RETRY", PATIENCE, "the second one to wait for the first")
    assert shop.delay("queue", key).id == second.id
    shop.release(key)
    assert got(second)["retries"] == 0


def test_what_is_part_of_a_canvas_is_sent_and_all_of_it_ends(shop: WaitingCluster, key: str) -> None:
    shop.hold("both", key)
    both, echo = shop.caller.tasks["both"], shop.caller.tasks["echo"]
    assert [skipped_key(one) is not None for one in got(group(both.si(key), both.si(key)).apply_async())] == [True] * 2
    assert len(got(chord([both.si(key), both.si(key)], echo.s()).apply_async())[0]) == 2
    assert skipped_key(got(chain(both.si(key), echo.s()).apply_async())[0]) is not None
    assert skipped_key(got(chain(echo.si(), both.si(key)).apply_async())) is not None
    assert skipped_key(got(chord([echo.si(), echo.si()], both.si(key)).apply_async())) is not None
    shop.release(key)


def test_the_members_of_a_chord_run_one_after_the_other_where_they_are_retried(shop: WaitingCluster, key: str) -> None:
    line, echo = shop.caller.tasks["waits_in_line"], shop.caller.tasks["echo"]
    ((*ran,),) = got(chord([line.si(key), line.si(key), line.si(key)], echo.s()).apply_async())
    assert len({one["task_id"] for one in ran}) == 3


def test_the_tasks_of_a_node_share_one_session(shop: WaitingCluster, key: str) -> None:
    held = [f"{key}-{number}" for number in range(3)]
    for one in held:
        shop.hold("both", one)
    assert shop.lock_sessions() == 1
    for one in held:
        shop.release(one)


@pytest.mark.parametrize("task", ["both", pytest.param("refuses", marks=pytest.mark.slow)])
def test_a_message_that_is_delivered_twice_runs_once_at_a_time(shop: WaitingCluster, key: str, task: str) -> None:
    run = shop.hold(task, key)
    shop.call(task, key, "hold", task_id=run.id)
    wait_until(lambda: f"{task}[{run.id}] goes back" in shop.workers[0].log, PATIENCE, "the second delivery to be seen")
    assert run.state == "PENDING"
    assert shop.holders(key) == [run.id]
    shop.release(key)
    assert got(run)["task_id"] == run.id


# -- ends that no handler of a task hears of ---------------------------------------------------------------------------


def test_a_message_that_is_revoked_while_it_waits_frees_its_key(shop: WaitingCluster, key: str) -> None:
    late = shop.caller.tasks["both"].apply_async((key,), countdown=3.0)
    wait_until(lambda: f"{late.id}] received" in shop.workers[0].log, PATIENCE, "the worker to have it")
    shop.caller.control.revoke(late.id)
    wait_until(lambda: shop.waiting(key) == [], PATIENCE, "its place to be free")
    assert got(shop.delay("both", key))["retries"] == 0


@pytest.mark.slow
def test_a_message_that_expires_while_it_waits_frees_its_key(shop: WaitingCluster, key: str) -> None:
    late = shop.caller.tasks["both"].apply_async((key,), countdown=1.0, expires=0.2)
    wait_until(lambda: late.state == "REVOKED", PATIENCE, "it to expire")
    wait_until(lambda: shop.waiting(key) == [], PATIENCE, "its place to be free")
    assert got(shop.delay("both", key))["retries"] == 0


@pytest.mark.slow
def test_a_run_that_is_terminated_frees_its_key(shop: WaitingCluster, key: str) -> None:
    run = shop.hold("both", key)
    shop.caller.control.revoke(run.id, terminate=True, signal="SIGKILL")
    wait_until(lambda: shop.waiting(key) == shop.holders(key) == [], PATIENCE, "its key to be free")
    assert got(shop.delay("both", key))["retries"] == 0


def test_a_run_whose_process_dies_frees_its_key(shop: WaitingCluster, key: str) -> None:
    shop.delay("both", key, "die")
    wait_until(lambda: shop.waiting(key) == shop.holders(key) == [], PATIENCE, "its key to be free")
    assert got(shop.delay("both", key))["retries"] == 0


@pytest.mark.slow
def test_a_message_that_is_gone_is_found_by_two_sweeps(shop: WaitingCluster, key: str) -> None:
    lost = shop.caller.tasks["both"].apply_async((key,), queue="purged")
    assert shop.delay("both", key).id == lost.id
    assert sweep(shop.caller, 0.0) == []
    with shop.caller.connection_for_write() as connection:
        assert connection.default_channel.queue_purge("purged") == 1
    assert shop.waiting(key) == [lost.id]
    gone = [row.task_id for _ in range(2) for row in sweep(shop.caller, 0.0)]
    assert gone == [lost.id]
    assert got(shop.delay("both", key))["retries"] == 0


# -- without a worker --------------------------------------------------------------------------------------------------


def _script(shop: WaitingCluster, source: str, **conf: Any) -> str:
    argv = [sys.executable, "-c", f"from tests.arena.waiting_shop import *\n{source}"]
    env = shop.environment(conf)
    done = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def test_an_eager_call_holds_its_key_while_it_runs_and_frees_it(shop: WaitingCluster, key: str) -> None:
    running = shop.hold("both", key)
    source = f"""
from celery_highlander import skipped_key
both = app.tasks["both"]
print(skipped_key(both.delay({key!r}).get()) is not None)
print(both.delay({key!r} + "-2").get()["retries"], both.delay({key!r} + "-2").get()["retries"])
"""
    assert _script(shop, source, task_always_eager=True).split() == ["True", "0", "0"]
    assert shop.waiting(key) == shop.holders(key) == [running.id]
    shop.release(key)


@pytest.mark.slow
def test_without_a_url_a_call_says_what_to_set(shop: WaitingCluster, key: str) -> None:
    source = f"""
from celery_highlander import ConfigurationError
try:
    app.tasks["both"].delay({key!r})
except ConfigurationError as error:
    print(error)
"""
    assert "highlander_url" in _script(shop, source, highlander_url=None)
