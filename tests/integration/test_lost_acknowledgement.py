"""A message of a singleton queue is acknowledged after its connection is gone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from kombu import Connection, Queue

from celery_highlander.worker.runs import Run

if TYPE_CHECKING:
    from tests.arena.servers import Redis

pytestmark = pytest.mark.redis


def watched(message: Any) -> Any:
    """The message, as that of a request that has passed the gate."""
    names = ("on_accepted", "reject", "on_success", "on_failure", "on_timeout")
    request: Any = SimpleNamespace(message=message, _request_dict={}, **dict.fromkeys(names))
    never = SimpleNamespace(may_begin=None, ended=None, refusal=None, cancel=None, process_died=None)
    Run(request, {}, **vars(never))
    return message


def test_that_fails_as_one_over_a_connection_that_breaks(redis_server: Redis) -> None:
    queue, got = Queue("lost"), []
    connection = Connection(redis_server.url())
    with connection.Producer() as producer:
        producer.publish({}, routing_key="lost", declare=[queue])
    connection.Consumer(queue, callbacks=[lambda _, message: got.append(message)]).consume()
    connection.drain_events(timeout=5.0)
    message = watched(got[0])
    connection.close()
    message.channel._disconnect_pools()
    errors = connection.connection_errors
    with pytest.raises(errors, match="the connection over which the message came is lost"):
        message.ack()
