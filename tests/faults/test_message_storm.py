"""A storm of messages over ten mixed failovers, with late acknowledgement: all processed, none by two at once."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.scenes import QUEUE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.arena.cluster import Cluster, Worker
    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres]

FAILOVERS = 10
PAUSE = 0.02
"""Seconds between two messages, and for which each task runs."""


def _terminate_worker(_: Cluster, leader: Worker) -> None:
    leader.send(signal.SIGTERM)


def _kill_worker(_: Cluster, leader: Worker) -> None:
    leader.send(signal.SIGKILL)


def _kill_keeper(_: Cluster, leader: Worker) -> None:
    os.kill(leader.keeper, signal.SIGKILL)


def _quit_worker(_: Cluster, leader: Worker) -> None:
    leader.send(signal.SIGQUIT)


def _end_session(cluster: Cluster, _: Worker) -> None:
    scenes.terminate_leaders(cluster)


def _kill_children(_: Cluster, leader: Worker) -> None:
    for child in leader.children:
        os.kill(child, signal.SIGKILL)
    leader.send(signal.SIGTERM)


KINDS: list[tuple[Callable[[Cluster, Worker], None], bool]] = [
    (_terminate_worker, True),
    (_kill_worker, True),
    (_end_session, False),
    (_kill_keeper, False),
    (_quit_worker, True),
    (_kill_children, True),
]
"""How a term is ended, and whether the worker ends with it."""


@contextlib.contextmanager
def storm(cluster: Cluster) -> Iterator[list[int]]:
    """Send messages all the while; the list has the numbers of those that the broker has taken."""
    sent: list[int] = []
    calm = threading.Event()

    def blow() -> None:
        for number in itertools.count(1):
            cluster.send(number, seconds=PAUSE)
            sent.append(number)
            if calm.wait(PAUSE):
                return

    thread = threading.Thread(target=blow)
    thread.start()
    try:
        yield sent
    finally:
        calm.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("broker", ["redis", pytest.param("rabbitmq", marks=pytest.mark.slow)])
def test_every_message_is_processed_and_none_by_two_at_once(cluster: MakeCluster, broker: str) -> None:
    shop = cluster(broker, processes={})
    for _ in range(3):
        shop.start(*scenes.QUIET, concurrency=2)
    leader = shop.leader(QUEUE, timeout=scenes.PATIENCE)
    token = shop.token(QUEUE)
    killed: list[Worker] = []
    with storm(shop) as sent:
        for inject, ends in itertools.islice(itertools.cycle(KINDS), FAILOVERS):
            scenes.acts(shop, QUEUE, token - 1)
            inject(shop, leader)
            if ends:
                killed += [leader] if inject is _kill_worker else []
                shop.start(*scenes.QUIET, concurrency=2)
            leader = shop.leader(QUEUE, other_than=token, timeout=scenes.PATIENCE)
            token = shop.token(QUEUE)
    numbers = [str(number) for number in sent]
    wait_until(lambda: not shop.referee().missing(numbers, QUEUE), 2 * scenes.PATIENCE, "every message to be processed")
    referee = shop.referee()
    referee.verdict(QUEUE)
    assert referee.concurrent_runs(QUEUE) == []
    assert len({spell.owner.token for spell in referee.spells(QUEUE)}) > FAILOVERS
    for worker in killed:  # under load Celery's own warm shutdown hangs now and then, with or without this package
        scenes.nothing_left(worker)
