"""A broker channel for one singleton queue, on which the broker holds no more messages out than may run at once.

Without it, a queue of limited concurrency would fill the worker's prefetch with messages that wait, and starve its
other queues.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.worker import state

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery.worker.consumer import Consumer
    from celery.worker.request import Request
    from kombu import Queue

    from celery_highlander.worker.queues import QueueWork


def needs_own_channel(consumer: Consumer) -> bool:
    """Whether the number of messages out is the broker's to limit; on Redis we fetch ourselves."""
    return not hasattr(consumer.task_consumer.channel, "unacked_key")


class OwnChannel:
    """Consumes one queue over a channel of its own. All of it happens on the consumer's thread."""

    def __init__(
        self, consumer: Consumer, queue: Queue, work: QueueWork, work_of: Callable[[Request], QueueWork | None]
    ) -> None:
        self._work = work
        self._work_of = work_of
        # Not for quorum queues, which know no limit of a whole channel; there it cannot be changed while consuming.
        self._is_global = bool(getattr(consumer, "qos_global", True))
        self._limit = 0
        self._consumer: Any = consumer.app.amqp.TaskConsumer(
            consumer.connection.channel(), queues=[queue], on_decode_error=consumer.on_decode_error
        )
        deliver = consumer.task_consumer.on_message

        def on_message(message: Any) -> None:
            deliver(message)
            if self._is_global:
                self._adjust()

        self._consumer.on_message = on_message

    @property
    def tag(self) -> str:
        """The consumer tag; messages come with it on AMQP."""
        return next(iter(self._consumer._active_tags.values()), "")

    @property
    def is_consuming(self) -> bool:
        """Whether the broker delivers."""
        return bool(self._consumer._active_tags)

    def consume(self) -> None:
        """Have the broker deliver."""
        self._adjust()
        self._consumer.consume()

    def cancel(self) -> None:
        """Have the broker deliver no more; the channel stays open for acknowledgements."""
        self._consumer.cancel()

    def _adjust(self) -> None:
        """Leave room beside those messages whose time (eta, countdown) has not come."""
        scheduled = sum(self._work_of(request) is self._work for request in getattr(state, "scheduled_requests", ()))
        limit = (self._work.concurrency or 0) + scheduled
        if limit != self._limit:
            self._limit = limit
            self._consumer.qos(prefetch_count=limit, apply_global=self._is_global)
