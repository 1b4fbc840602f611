"""What monitors hear of leadership: Celery events over the worker's own dispatcher, with `-E` and without.

They are as rare as `worker-online`, and pass where that does. A worker without a connection to its broker sends none.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_highlander.worker.consumers import Consumers

logger = logging.getLogger("celery_highlander")

GROUP = "highlander"

ELECTED = "highlander-elected"
STEPPED_DOWN = "highlander-stepped-down"
LOST = "highlander-lost"
TAKEOVER_WAITING = "highlander-takeover-waiting"
SINGLETON_FAILED = "highlander-singleton-failed"


class Monitors:
    """Sends events on the consumer's thread.

    Args:
        consumers: has the connection.
    """

    def __init__(self, consumers: Consumers) -> None:
        self._consumers = consumers

    def tell(self, type_: str, **fields: object) -> None:
        """Send an event soon; safe on any thread. Every one has `singleton` and `token`."""
        self._consumers.soon(lambda: self._send(type_, fields))

    def _send(self, type_: str, fields: dict[str, Any]) -> None:
        consumer = self._consumers.consumer
        dispatcher = getattr(consumer, "event_dispatcher", None)
        if dispatcher is None or not dispatcher.enabled:
            return
        let_pass(dispatcher)
        try:
            dispatcher.send(type_, **fields)
        except Exception as error:  # noqa: BLE001  # the broker's client may raise anything; nobody depends on events
            logger.debug("highlander: the event %s was not sent: %r", type_, error)


def let_pass(dispatcher: Any) -> None:
    """Let our events pass where the dispatcher sends only some groups."""
    if dispatcher.groups:
        dispatcher.groups.add(GROUP)
