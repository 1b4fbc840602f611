"""Bursts of messages, as when a thousand singletons are elected at once."""

from __future__ import annotations

import socket

import pytest

from celery_highlander.keeper.messages import Channel, ChannelClosedError


def flood(channel: Channel) -> None:
    for _ in range(100):
        channel.send("log", message="x" * 100_000)


def test_more_messages_than_the_kernel_holds_arrive_in_order_once_the_other_side_reads() -> None:
    one, other = map(Channel, socket.socketpair())
    for number in range(5000):
        one.send("elected", name=f"singleton-{number}", token=number)
    waited = one.has_unsent
    found: list[int] = []
    while len(found) < 5000:
        found += [message["token"] for message in other.receive()]
        one.flush()
    assert found == list(range(5000))
    assert (waited, one.has_unsent) == (True, False)
    one.close()
    other.close()


def test_a_side_that_never_reads_is_given_up_before_the_memory_is_full() -> None:
    one, other = map(Channel, socket.socketpair())
    with pytest.raises(ChannelClosedError, match="does not read"):
        flood(one)
    one.close()
    other.close()
