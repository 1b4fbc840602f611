"""Whether the broker is still there, also where nobody says that it is not: packets may be dropped without a word.

Celery notices a broker that closes its connections. One that falls silent it notices late or not at all: with AMQP's
usual heartbeats after minutes, and on Redis the main loop hangs in its next command until TCP gives up, after a
quarter of an hour. Meanwhile the queues would have a leader that fetches nothing.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery_highlander.clock import boot_time
from celery_highlander.worker.pools import pool_name

if TYPE_CHECKING:
    from celery.worker import WorkController
    from celery.worker.consumer import Consumer

logger = logging.getLogger("celery_highlander")

LOOKS = 4
"""How often within `highlander_broker_timeout` a sign of the broker is looked for."""

_POOLS_IN_THE_WAY = ("solo", "gevent", "eventlet")  # a task that computes keeps the consumer from its connection


def is_in_the_way(worker: WorkController) -> bool:
    """Whether the pool's tasks may keep the consumer from its connection."""
    return pool_name(worker) in _POOLS_IN_THE_WAY


def expect_signs(worker: WorkController, timeout: float) -> None:
    """Have the connections of this worker notice a silent broker in time, where the user has not said otherwise.

    AMQP gets heartbeats, by which also the broker notices in time that this worker is cut off, and gives its messages
    to the next leader. Redis gets a time-out for its commands.
    """
    conf, kind = worker.app.conf, worker.app.connection_for_read().transport.driver_type
    if kind == "amqp" and conf.broker_heartbeat == _usual_heartbeat() and not is_in_the_way(worker):
        conf.broker_heartbeat = max(1, min(conf.broker_heartbeat, int(timeout / 2)))
    elif kind == "redis":
        conf.broker_transport_options = {"socket_timeout": timeout, **(conf.broker_transport_options or {})}


def _usual_heartbeat() -> object:
    from celery.app.defaults import DEFAULTS

    return DEFAULTS["broker_heartbeat"]


class BrokerWatch:
    """When this worker last had a sign of its broker.

    A sign is a command that Redis answered, a frame that an AMQP broker with heartbeats sent, and with other brokers
    that the consumer's loop runs.
    """

    def __init__(self, timeout: float, *, pool_in_the_way: bool) -> None:
        self._interval = timeout / LOOKS
        self._pool_in_the_way = pool_in_the_way
        self._consumer: Consumer | None = None
        self._gone_at: float | None = None
        self._sign_at = 0.0
        self._look_at = 0.0
        self._looking = False
        self._frames = -1

    # -- consumer's thread ---------------------------------------------------------------------------------------------

    def connected(self, consumer: Consumer) -> None:
        """There is a new connection."""
        self._sign_at = boot_time()
        self._looking = False
        self._frames = -1
        self._gone_at = None
        self._consumer = consumer

    def disconnected(self) -> None:
        """The connection is gone: since the last sign."""
        if self._consumer is not None:
            self._consumer = None
            self._gone_at = boot_time() if self._pool_in_the_way else self._sign_at

    def _look(self, consumer: Consumer) -> None:
        self._looking = False
        still = consumer is self._consumer
        if not still or consumer.task_consumer is None:
            return
        try:
            seen = self._is_there(consumer)
        except consumer.connection_errors:
            raise  # to the consumer's loop: it reconnects
        except Exception as error:  # noqa: BLE001  # it must not end the worker; a refusal is an answer, too
            logger.debug("highlander: the broker refused: %s", error)
            seen = True
        if seen:
            self._sign_at = boot_time()

    def _is_there(self, consumer: Consumer) -> bool:
        channel: Any = consumer.task_consumer.channel
        kind = consumer.connection.transport.driver_type
        if kind == "redis":
            with channel.conn_or_acquire() as client:  # not the connection on which BRPOP waits
                client.ping()
        elif kind == "amqp" and 0 < (consumer.connection.get_heartbeat_interval() or 0) <= 2 * self._interval:
            before, self._frames = self._frames, getattr(channel.connection, "bytes_recv", -1)  # of py-amqp
            return before != self._frames or self._frames == -1
        return True

    # -- link's thread -------------------------------------------------------------------------------------------------

    def gone_since(self, now: float) -> float | None:
        """Look for another sign if it is time; return since when there has been none, None while all is well."""
        consumer = self._consumer
        if consumer is None:
            return self._gone_at
        if now - self._look_at > 2 * self._interval + 1.0:
            self._sign_at = max(self._sign_at, now - self._interval)  # it was us who was away
        if now - self._look_at >= self._interval:
            self._look_at = now
            if not self._looking:
                self._looking = True
                consumer.call_soon(self._look, consumer)
        if now - self._sign_at <= 2 * self._interval or (self._looking and self._pool_in_the_way):
            return None
        return self._sign_at
