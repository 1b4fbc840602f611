"""A tick's message is published twice, as two copies: one of them is run, whatever befalls workers and database.

The one that is run stays the one: it is run again when it is delivered again, or retried.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import uuid
from collections import Counter
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from kombu import Connection as KombuConnection

from tests.arena.journal import now_ns
from tests.arena.proxy import TcpProxy
from tests.arena.requirements import require
from tests.arena.servers import Database, Postgres, RabbitMQ, Redis
from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.conftest import lead_once
from tests.faults.scenes import PATIENCE, QUEUE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.arena.cluster import Cluster, Worker
    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres]

ORDINARY = "celery"
REFUSED = "is not run: another copy"
WAIT = "the messages of ticks wait"
JOURNALS = {QUEUE: QUEUE, ORDINARY: "ordinary"}
ROOMY = {"worker_prefetch_multiplier": 50}
"""What waits holds its place among the prefetched messages."""


def new_ticks(cluster: Cluster, count: int) -> list[str]:
    """Claim that many ticks, as a beat would; return their ids."""
    ids = [str(uuid.uuid4()) for _ in range(count)]
    cluster.query(
        "insert into highlander_tick (id, key, entry, due_at, token) "
        "select unnest(cast(%s as uuid[])), 1, 'report', now(), 1",
        ids,
    )
    return ids


def publish(
    cluster: Cluster,
    number: int,
    tick: str,
    *,
    queue: str = ORDINARY,
    seconds: float = 0.01,
    task: str = "",
    **options: Any,
) -> None:
    """Send one copy of the message of a tick."""
    due_at = datetime.now(timezone.utc).isoformat()
    cluster.app.send_task(
        f"tests.arena.shop.{task or ('work' if queue == QUEUE else 'ordinary')}",
        args=(number, seconds),
        queue=queue,
        task_id=tick,
        headers={"highlander_tick": {"id": tick, "copy": str(uuid.uuid4()), "due_at": due_at}},
        **options,
    )


def runs(cluster: Cluster, queue: str = ORDINARY) -> Counter[int]:
    """How often each number was begun."""
    return Counter(int(run.task_id) for run in cluster.referee().task_runs(JOURNALS[queue]))


def refused(*workers: Worker) -> int:
    """How many copies the workers say that they did not run."""
    return sum(worker.log.count(REFUSED) for worker in workers)


def received(*workers: Worker) -> int:
    """How many messages the workers have got."""
    return sum(worker.log.count(" received") for worker in workers)


def have_run_once(cluster: Cluster, count: int, queue: str = ORDINARY) -> None:
    """Wait until of each number one copy has run and the other one was refused; no number may have run twice."""
    ids = [str(number) for number in range(count)]
    wait_until(lambda: not cluster.referee().missing(ids, JOURNALS[queue]), 2 * PATIENCE, "every tick to have run")
    wait_until(lambda: refused(*cluster.workers) == count, PATIENCE, f"{count} copies to be refused")
    assert runs(cluster, queue) == dict.fromkeys(range(count), 1)


def nothing_is_left(cluster: Cluster, queue: str) -> None:
    """The queue is empty, once no worker holds messages of it any more."""
    for worker in cluster.workers:
        worker.send(signal.SIGTERM)
        scenes.nothing_left(worker)
    with KombuConnection(cluster.conf["broker_url"]) as connection:
        channel = connection.channel()
        if hasattr(channel, "unacked_key"):
            assert channel.client.hlen(channel.unacked_key) == channel.client.llen(queue) == 0
        else:
            assert channel.queue_declare(queue, passive=True).message_count == 0


@contextlib.contextmanager
def nobody_may_ask(cluster: Cluster) -> Iterator[None]:
    """Have every question to the ledger wait."""
    connection = psycopg2.connect(cluster.url.replace("+psycopg2", ""))
    try:
        with connection.cursor() as cursor:
            cursor.execute("lock table highlander_tick in access exclusive mode")
            yield
        connection.rollback()
    finally:
        connection.close()


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    require(Postgres.available())
    with Postgres() as server:
        yield server


@pytest.fixture
def stoppable(own_server: Postgres) -> Database:
    """A database on a server that may be stopped."""
    return own_server.create_database("shop")


QUICK = {("rabbitmq", "prefork", ORDINARY), ("redis", "gevent", QUEUE)}


@pytest.mark.parametrize(
    ("broker", "pool", "queue"),
    [
        pytest.param(*variant, marks=() if variant in QUICK else pytest.mark.slow)
        for variant in itertools.product(
            ("rabbitmq", "redis"), ("prefork", "gevent", "threads", "solo"), (ORDINARY, QUEUE)
        )
    ],
)
def test_of_two_copies_one_is_run(cluster: MakeCluster, broker: str, pool: str, queue: str) -> None:
    shop = cluster(broker, processes={}, pool=pool, conf=ROOMY)
    shop.start(*scenes.QUIET, concurrency=2)
    shop.leader(QUEUE, timeout=PATIENCE)
    for number, tick in enumerate(new_ticks(shop, 10)):
        publish(shop, number, tick, queue=queue)
        publish(shop, number, tick, queue=queue)
    have_run_once(shop, 10, queue)
    nothing_is_left(shop, queue)


@pytest.mark.parametrize("broker", ["rabbitmq", pytest.param("redis", marks=pytest.mark.slow)])
def test_many_ticks_are_run_once_each_by_several_workers(cluster: MakeCluster, broker: str) -> None:
    shop = cluster(broker, processes={})
    workers = [shop.start(*scenes.QUIET, concurrency=2) for _ in range(3)]
    scenes.ready(*workers)
    ticks = list(enumerate(new_ticks(shop, 200)))
    for copies in (ticks, reversed(ticks)):
        for number, tick in copies:
            publish(shop, number, tick)
    have_run_once(shop, 200)
    assert min(map(received, workers)) > 0


@pytest.mark.parametrize(
    ("broker", "queue"),
    [
        ("rabbitmq", ORDINARY),
        pytest.param("redis", QUEUE, marks=pytest.mark.slow),
        pytest.param("redis", ORDINARY, marks=pytest.mark.slow),
    ],
)
def test_the_copy_that_a_killed_worker_was_running_is_run_again(cluster: MakeCluster, broker: str, queue: str) -> None:
    options = {"visibility_timeout": 8} if queue == ORDINARY and broker == "redis" else {}
    shop = cluster(broker, processes={}, conf={"broker_transport_options": options})
    first = shop.start(*scenes.QUIET)
    shop.leader(QUEUE, timeout=PATIENCE)
    (tick,) = new_ticks(shop, 1)
    publish(shop, 0, tick, queue=queue, seconds=4.0)
    wait_until(lambda: runs(shop, queue)[0] == 1, PATIENCE, "the task to run")
    first.send(signal.SIGKILL)
    killed_at = now_ns()
    if options:  # kombu looks for what is overdue as it starts, and then every 100 s
        wait_until(lambda: now_ns() - killed_at > 9e9, PATIENCE, "the visibility timeout to pass")
    publish(shop, 0, tick, queue=queue)
    shop.start(*scenes.QUIET)
    scenes.ended(shop, 0, JOURNALS[queue])
    wait_until(lambda: refused(*shop.workers) == 1, PATIENCE, "the other copy to be refused")
    assert runs(shop, queue)[0] == 2
    nothing_is_left(shop, queue)


@pytest.mark.parametrize("protocol", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_a_retry_is_run(cluster: MakeCluster, protocol: int) -> None:
    shop = cluster("redis", processes={}, conf={"task_protocol": protocol})
    worker = shop.start(*scenes.QUIET)
    scenes.ready(worker)
    (tick,) = new_ticks(shop, 1)
    for _ in range(2):
        publish(shop, 0, tick, task="retried")
    wait_until(lambda: runs(shop)[0] == 2, PATIENCE, "the retry")
    wait_until(lambda: refused(worker) == 1, PATIENCE, "the other copy to be refused")
    scenes.finishes(shop, task="ordinary", queue=ORDINARY)
    assert runs(shop)[0] == 2
    nothing_is_left(shop, ORDINARY)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broker", "pool", "keeper_dies"),
    [
        ("rabbitmq", "prefork", True),
        pytest.param("redis", "prefork", False, marks=pytest.mark.slow),
        pytest.param("redis", "threads", True, marks=pytest.mark.slow),
        pytest.param("rabbitmq", "gevent", True, marks=pytest.mark.slow),
    ],
)
def test_messages_wait_for_a_database_that_is_down(
    cluster: MakeCluster, own_server: Postgres, stoppable: Database, broker: str, pool: str, keeper_dies: bool
) -> None:
    shop = cluster(broker, processes={}, pool=pool, url=stoppable.url("psycopg2"), conf=ROOMY)
    lead_once(stoppable.url("psycopg2"), [QUEUE])
    worker = shop.start(*scenes.QUIET, concurrency=2)
    shop.leader(QUEUE, timeout=PATIENCE)
    ticks = new_ticks(shop, 20)
    own_server.stop("fast")
    for number, tick in enumerate(ticks):
        publish(shop, number, tick)
        publish(shop, number, tick)
    stopped_at = now_ns()
    wait_until(lambda: received(worker) == 40, PATIENCE, "the messages to arrive")
    wait_until(lambda: worker.log.count(WAIT) == 1, PATIENCE, "the worker to say so")
    if keeper_dies:
        os.kill(worker.keeper, signal.SIGKILL)
        wait_until(lambda: worker.log.count(WAIT) == 2, PATIENCE, "the next keeper to be asked")
    wait_until(lambda: now_ns() - stopped_at > 4e9, PATIENCE, "more than the lease to pass")
    scenes.finishes(shop, task="ordinary", queue=ORDINARY)  # one that is of no tick waits for nothing
    assert sum(runs(shop).values()) == 1
    own_server.start()
    wait_until(lambda: sum(runs(shop).values()) >= 21, PATIENCE, "the ticks to run")
    wait_until(lambda: refused(worker) == 20, PATIENCE, "the other copies to be refused")
    assert {number: count for number, count in runs(shop).items() if number < 20} == dict.fromkeys(range(20), 1)
    assert worker.log.count(WAIT) == 1 + keeper_dies
    nothing_is_left(shop, ORDINARY)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broker", "pool", "queue"),
    [
        ("redis", "prefork", ORDINARY),
        pytest.param("rabbitmq", "prefork", QUEUE, marks=pytest.mark.slow),
        pytest.param("rabbitmq", "prefork", ORDINARY, marks=pytest.mark.slow),
        pytest.param("redis", "prefork", QUEUE, marks=pytest.mark.slow),
        pytest.param("redis", "gevent", ORDINARY, marks=pytest.mark.slow),
        pytest.param("rabbitmq", "solo", QUEUE, marks=pytest.mark.slow),
    ],
)
def test_what_waits_in_a_worker_that_shuts_down_is_run_by_another_one(
    cluster: MakeCluster, broker: str, pool: str, queue: str
) -> None:
    shop = cluster(broker, processes={}, pool=pool, conf=ROOMY)
    first = shop.start(*scenes.QUIET, concurrency=2)
    shop.leader(QUEUE, timeout=PATIENCE)
    heartbeats, token = shop.heartbeats(QUEUE), shop.token(QUEUE)
    ticks = new_ticks(shop, 5)
    with nobody_may_ask(shop):
        for number, tick in enumerate(ticks):
            publish(shop, number, tick, queue=queue)
            publish(shop, number, tick, queue=queue)
        wait_until(lambda: received(first) == 10, PATIENCE, "the messages to arrive")
        wait_until(lambda: shop.heartbeats(QUEUE) > heartbeats + 3, PATIENCE, "heartbeats")
        assert shop.token(QUEUE) == token  # a ledger that does not answer costs no leadership
        first.send(signal.SIGTERM)
        scenes.nothing_left(first)
        shop.start(*scenes.QUIET, concurrency=2)
    have_run_once(shop, 5, queue)
    nothing_is_left(shop, queue)


@pytest.mark.parametrize("broker", ["redis", pytest.param("rabbitmq", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_what_waits_in_a_leader_that_is_deposed_is_run_by_the_next_one(cluster: MakeCluster, broker: str) -> None:
    shop = cluster(broker, processes={}, conf={**ROOMY, "highlander_queue_concurrency": {QUEUE: 5}})
    workers = [shop.start(*scenes.QUIET, concurrency=2) for _ in range(2)]
    scenes.ready(*workers)
    leader = shop.leader(QUEUE, timeout=PATIENCE)
    token = shop.token(QUEUE)
    ticks = new_ticks(shop, 10)
    with nobody_may_ask(shop):
        for number, tick in enumerate(ticks):
            publish(shop, number, tick, queue=QUEUE)
            publish(shop, number, tick, queue=QUEUE)
        wait_until(lambda: received(leader) == 5, PATIENCE, "as many messages as may run at once")
        scenes.terminate_leaders(shop)
        next_leader = shop.leader(QUEUE, other_than=token, timeout=PATIENCE)
        wait_until(lambda: received(next_leader) >= 5, PATIENCE, "the next leader to have them")
    have_run_once(shop, 10, QUEUE)
    shop.referee().verdict(QUEUE)
    nothing_is_left(shop, QUEUE)


@pytest.mark.slow
@pytest.mark.parametrize(("broker", "pool"), [("redis", "prefork"), ("rabbitmq", "threads")])
def test_copies_wait_for_their_time_and_their_rate_and_expire(cluster: MakeCluster, broker: str, pool: str) -> None:
    annotations = {"tests.arena.shop.ordinary": {"rate_limit": "5/s"}}
    shop = cluster(broker, processes={}, pool=pool, conf={**ROOMY, "task_annotations": annotations})
    worker = shop.start(*scenes.QUIET, concurrency=2)
    scenes.ready(worker)
    ticks = new_ticks(shop, 7)
    for number, tick in enumerate(ticks[:6]):
        publish(shop, number, tick, countdown=2.0 + number % 2)
        publish(shop, number, tick, countdown=2.0)
    have_run_once(shop, 6)
    with nobody_may_ask(shop):
        publish(shop, 6, ticks[6], expires=2.0)
        arrived_at = now_ns()
        wait_until(lambda: now_ns() - arrived_at > 3e9, PATIENCE, "the message to expire")
    wait_until(lambda: "revoked" in worker.log, PATIENCE, "the message to be given up")
    scenes.finishes(shop, task="ordinary", queue=ORDINARY)
    assert runs(shop)[6] == 0
    nothing_is_left(shop, ORDINARY)


@pytest.mark.slow
@pytest.mark.parametrize(("broker", "pool"), [("rabbitmq", "prefork"), ("rabbitmq", "gevent"), ("redis", "prefork")])
def test_what_waits_as_the_broker_connection_breaks_is_run_when_it_is_delivered_again(
    cluster: MakeCluster, request: pytest.FixtureRequest, broker: str, pool: str
) -> None:
    server: Redis | RabbitMQ = request.getfixturevalue(f"{broker}_server")
    shop = cluster(broker, processes={}, pool=pool, conf=ROOMY)
    with TcpProxy("127.0.0.1", server.port) as proxy:
        url = server.url().replace(str(server.port), str(proxy.port))
        worker = shop.start(*scenes.QUIET, concurrency=2, conf={"broker_url": url})
        scenes.ready(worker)
        ticks = new_ticks(shop, 5)
        with nobody_may_ask(shop):
            for number, tick in enumerate(ticks):
                publish(shop, number, tick)
                publish(shop, number, tick)
            wait_until(lambda: received(worker) == 10, PATIENCE, "the messages to arrive")
            proxy.reset()
            wait_until(lambda: received(worker) == 20, PATIENCE, "the messages to arrive again")
        have_run_once(shop, 5)
        nothing_is_left(shop, ORDINARY)


@pytest.mark.slow
@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_in_a_serial_queue_ticks_keep_their_place(cluster: MakeCluster, broker: str, pool: str) -> None:
    shop = cluster(broker, processes={}, pool=pool, conf={"highlander_queue_concurrency": {QUEUE: 1}})
    ticks = new_ticks(shop, 20)
    for number, tick in enumerate(ticks):
        publish(shop, 2 * number, tick, queue=QUEUE)
        shop.send(2 * number + 1)
    shop.start(*scenes.QUIET, concurrency=2)
    ids = [str(number) for number in range(40)]
    wait_until(lambda: not shop.referee().missing(ids, QUEUE), PATIENCE, "every message to be processed")
    assert [run.task_id for run in sorted(shop.referee().task_runs(QUEUE), key=lambda run: run.first)] == ids


@pytest.mark.parametrize(
    "conf",
    [pytest.param({}, id="no-table"), pytest.param({"highlander_beat_once": False}, marks=pytest.mark.slow, id="off")],
)
def test_both_copies_are_run_where_nothing_can_be_known_or_is_asked(cluster: MakeCluster, conf: dict[str, Any]) -> None:
    shop = cluster("redis", processes={}, conf=conf)
    worker = shop.start(*scenes.QUIET)
    scenes.ready(worker)
    ticks = new_ticks(shop, 3)
    if not conf:
        shop.query("alter table highlander_tick rename to gone")
    for number, tick in enumerate(ticks):
        publish(shop, number, tick)
        publish(shop, number, tick)
    wait_until(lambda: runs(shop) == dict.fromkeys(range(3), 2), PATIENCE, "all copies to run")
    assert worker.log.count("WITHOUT asking") == (not conf)
    nothing_is_left(shop, ORDINARY)
