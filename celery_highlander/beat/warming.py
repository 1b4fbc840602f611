"""Loading ahead of time what a beat needs first when it comes to lead; asks nothing of broker or database."""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery import Celery


def warm_up(app: Celery) -> None:
    """Import the transport, and build a message that is not sent: together that takes longer than a takeover.

    What fails here fails again when it is needed, and is told then.
    """
    for load in (
        lambda: app.connection_for_write().transport,
        lambda: app.amqp.create_task_message(str(uuid.uuid4()), "celery.ping", (), {}),
        lambda: (app.amqp.router, app.amqp.send_task_message, app.backend),
    ):
        with contextlib.suppress(Exception):
            load()
