"""Giving a dead leader's unacknowledged messages back at once, on brokers that would keep them for long.

AMQP returns them when the connection ends. kombu's Redis transport keeps them in a hash until the visibility
time-out (an hour by default) has passed. Only the leader consumes a singleton queue, so what is unacknowledged
there when another one begins belongs to nobody.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery.worker.consumer import Consumer

logger = logging.getLogger("celery_highlander")

Route = tuple[str, str]


def leave_to_the_next_leader(consumer: Consumer, is_ours: Callable[[Route], bool]) -> None:
    """Keep kombu from giving messages of singleton queues back when it closes this consumer's connection.

    It does so late, after a connection that was cut off has been given up, say. By then the next leader has long given
    them back itself, and holds them under the same tags: they would be taken from its hands, and delivered once more.
    """
    channel: Any = consumer.task_consumer.channel
    if not hasattr(channel, "unacked_key"):
        return
    qos = channel.qos
    restore = qos.restore_unacked_once

    def restore_others(*args: Any, **options: Any) -> object:
        for tag, message in list(qos._delivered.items()):
            info = message.delivery_info
            if is_ours((info.get("exchange") or "", info.get("routing_key") or "")):
                del qos._delivered[tag]
        return restore(*args, **options)

    qos.restore_unacked_once = restore_others


def rescue_unacknowledged(consumer: Consumer, is_ours: Callable[[Route], bool]) -> int:
    """Put the unacknowledged messages of a queue back to its front, in their order; return how many.

    Called on the consumer's thread, by a new leader, after its predecessor's work is dead. A message that the
    predecessor settles at the same time is settled once: kombu does both in a Redis transaction on the same hash.

    Args:
        consumer: the consumer of this worker, over whose connection it is done.
        is_ours: tells by (exchange, routing key) whether a message belongs to the queue.
    """
    channel: Any = consumer.task_consumer.channel
    if not hasattr(channel, "unacked_key"):
        return 0
    held_here = set(channel.qos._delivered)
    left: list[tuple[float, str]] = []
    prefix = channel.global_keyprefix  # which kombu puts before the keys of some commands, and not of these
    with channel.conn_or_acquire() as client:
        for raw_tag, raw in client.hscan_iter(prefix + channel.unacked_key):
            tag = raw_tag.decode() if isinstance(raw_tag, bytes) else raw_tag
            _, exchange, routing_key = json.loads(raw)
            if tag not in held_here and is_ours((exchange or "", routing_key or "")):
                left.append((client.zscore(prefix + channel.unacked_index_key, tag) or 0.0, tag))
        for _, tag in sorted(left, reverse=True):  # the newest first: each goes before those that were put back already
            channel.qos.restore_by_tag(tag, client=client)
    if left:
        logger.info("gave %s unacknowledged messages of the last leader back to the queue", len(left))
    return len(left)
