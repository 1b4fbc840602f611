"""Messages on Redis that arrive while a leader dies, or is frozen: none may be popped by it and lost."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.scenes import PATIENCE, QUEUE, QUIET

if TYPE_CHECKING:
    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres, pytest.mark.redis]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_a_message_that_arrives_at_a_dying_leader_is_processed_by_the_next_one(
    cluster: MakeCluster, number: signal.Signals
) -> None:
    shop = cluster("redis", processes={})
    shop.start(*QUIET, "--highlander-priority", "1")
    leader = shop.leader(QUEUE, timeout=PATIENCE)
    standby = shop.start(*QUIET)
    scenes.ready(standby)
    scenes.finishes(shop)  # the leader is idle now, and waits for a message
    leader.send(number)
    for message in range(50):
        shop.send(message)
    sent = [str(message) for message in range(50)]
    wait_until(lambda: not shop.referee().missing(sent, QUEUE), PATIENCE, "every message to be processed")
    shop.referee().verdict(QUEUE)
    assert shop.referee().concurrent_runs(QUEUE) == []
    assert shop.leader(QUEUE) is standby


def test_messages_of_every_priority_are_fetched_the_most_urgent_first(cluster: MakeCluster) -> None:
    shop = cluster("redis", processes={}, conf={"broker_transport_options": {"global_keyprefix": "shop:"}})
    for message, priority in enumerate((9, 6, 3, 0)):
        shop.app.send_task("tests.arena.shop.work", args=(message,), queue=QUEUE, priority=priority)
    shop.start(*QUIET, "--prefetch-multiplier", "1")
    wait_until(lambda: not shop.referee().missing(["0", "1", "2", "3"], QUEUE), PATIENCE, "all four to be processed")
    runs = sorted(shop.referee().task_runs(QUEUE), key=lambda run: run.first)
    assert [run.task_id for run in runs] == ["3", "2", "1", "0"]
