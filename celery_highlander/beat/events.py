"""The event `highlander-tick-skipped`, for `celery events` and other monitors."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from celery_highlander.config import BEAT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery import Celery

logger = logging.getLogger("celery_highlander")

TICK_SKIPPED = "highlander-tick-skipped"
"""With the fields `singleton`, `entry` and `count`."""

MOST_EVENTS = 20
"""Events at one time; of a schedule that is more than can be sent it would be many, and each time."""


def tell_of_skipped(app: Celery, skipped: Mapping[str, int]) -> None:
    """Send an event for each entry (name to count of ticks); where the broker does not take it, none is sent."""
    try:
        with app.events.default_dispatcher() as dispatcher:
            for entry, count in list(skipped.items())[:MOST_EVENTS]:
                dispatcher.send(TICK_SKIPPED, singleton=BEAT, entry=entry, count=count)
    except Exception as error:  # noqa: BLE001  # the broker's client may raise anything; nobody depends on events
        logger.debug("beat: the event %s was not sent: %r", TICK_SKIPPED, error)
