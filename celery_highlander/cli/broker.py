"""The broker, for the commands that need it: tried once, not for ever."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from kombu.exceptions import OperationalError

from celery_highlander.errors import BrokerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery
    from kombu import Connection

CONNECT_TIMEOUT = 5.0
"""Seconds for the broker to accept a connection."""


@contextlib.contextmanager
def connected(app: Celery) -> Iterator[Connection]:
    """A connection for the block.

    Raises:
        BrokerUnavailableError: there is none, or it breaks.
    """
    connection = app.connection_for_write(connect_timeout=CONNECT_TIMEOUT)
    try:
        connection.ensure_connection(max_retries=1, timeout=CONNECT_TIMEOUT)
        yield connection
    except (OperationalError, *connection.connection_errors) as error:
        raise BrokerUnavailableError(
            f"the broker {connection.as_uri()} cannot be reached: {str(error).rstrip('.')}.",
            "Is it up? Check broker_url.",
        ) from None
    finally:
        connection.release()
