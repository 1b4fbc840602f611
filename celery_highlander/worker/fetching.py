"""Fetching from a singleton queue on Redis without a moment in which a message is nowhere.

kombu waits for messages with BRPOP, which takes a message off its list before anybody has recorded it. One that
arrives while the worker is dying, or frozen, is gone for good, late acknowledgement or not. So a singleton queue
is left out of that BRPOP, and is looked at every few milliseconds with a script that moves a message from the
queue to kombu's own hash of unacknowledged ones in one step. Whoever leads next finds it there (`rescue`).
"""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery.worker.consumer import Consumer

    from celery_highlander.worker.queues import QueueWork

logger = logging.getLogger("celery_highlander")

BUSY_INTERVAL = 0.005
"""Seconds to the next look after one that found messages."""

IDLE_INTERVAL = 0.05
"""Seconds between two looks at an empty queue, at most."""

# KEYS: the hash and the index of unacknowledged messages, then the queue's lists by priority. ARGV: the time. A message
# is looked at before it is taken, for a script that fails half-way is not undone; one that is no JSON is for kombu.
_MOVE = """
for i = 3, #KEYS do
    local item = redis.call('LINDEX', KEYS[i], -1)
    if item then
        local ok, message = pcall(cjson.decode, item)
        local properties = ok and message['properties']
        if properties and properties['delivery_tag'] then
            local info = properties['delivery_info'] or {}
            local route = ',' .. cjson.encode(info['exchange'] or '') .. ',' .. cjson.encode(info['routing_key'] or '')
            redis.call('ZADD', KEYS[2], ARGV[1], properties['delivery_tag'])
            redis.call('HSET', KEYS[1], properties['delivery_tag'], '[' .. item .. route .. ']')
        end
        return redis.call('RPOP', KEYS[i])
    end
end
return false
"""


class Fetcher:
    """Fetches from singleton queues over one broker connection. All of it happens on the consumer's thread."""

    def __init__(self, consumer: Consumer, works: Mapping[str, QueueWork]) -> None:
        self._consumer = consumer
        self._channel: Any = consumer.task_consumer.channel
        self._works = works
        self._interval = IDLE_INTERVAL
        self._closed = False
        self._leave_out_of_brpop()
        if consumer.hub is not None:
            self._again()

    def close(self) -> None:
        """Stop: the connection is gone."""
        self._closed = True

    def _leave_out_of_brpop(self) -> None:
        channel = self._channel

        def update() -> None:
            channel._queue_cycle.update(set(channel.active_queues) - set(self._works))

        channel._update_queue_cycle = update

    def _again(self) -> None:
        self._consumer.timer.call_after(self._interval, self._look_again)

    def _look_again(self) -> None:
        found = self.look()
        self._interval = BUSY_INTERVAL if found else min(IDLE_INTERVAL, self._interval * 2)
        if not self._closed:
            self._again()

    def look(self) -> bool:
        """Fetch what there is and may be fetched; return whether there was anything."""
        consumer = self._consumer.task_consumer
        if self._closed or consumer is None or consumer.channel is not self._channel:
            self._closed = True
            return False
        found = False
        try:
            for queue, work in self._works.items():
                while work.is_open and work.has_room and self._channel.qos.can_consume() and self._fetch(queue):
                    found = True
        except self._channel.connection_errors:
            raise  # to the consumer's loop: it reconnects
        except Exception:
            logger.exception("highlander: fetching from Redis failed")
        return found

    def _fetch(self, queue: str) -> bool:
        channel = self._channel
        if queue not in channel.active_queues:
            return False
        names = [channel.unacked_key, channel.unacked_index_key]
        names += [channel._q_for_pri(queue, priority) for priority in channel.priority_steps]
        keys = [channel.global_keyprefix + name for name in names]  # EVAL is none of the commands that kombu prefixes
        with channel.conn_or_acquire() as client:
            item = client.eval(_MOVE, len(keys), *keys, time.time())
        if item is None:
            return False
        channel.connection._deliver(json.loads(item), queue)
        return True


def fetcher_for(consumer: Consumer, works: Mapping[str, QueueWork]) -> Fetcher | None:
    """Return a fetcher for singleton queues on Redis; None on other brokers, where kombu's own way loses nothing."""
    channel = consumer.task_consumer.channel
    if not hasattr(channel, "unacked_key") or not hasattr(channel, "_brpop_start"):
        return None
    return Fetcher(consumer, works)
