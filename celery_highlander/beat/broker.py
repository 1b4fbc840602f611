"""The connection on which a beat publishes: one that says soon, and honestly, whether a message is with the broker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery import Celery
    from kombu import Connection

IDLE_LIMIT = 30.0
"""Seconds after which an unused connection is not trusted any more."""


def open_for_publishing(app: Celery, timeout: float) -> Connection:
    """Open a connection to the broker on which no operation takes longer than `timeout` seconds; no second try.

    On AMQP each publication is confirmed by the broker: without that a message is lost, and nobody told, when the
    connection breaks behind it.

    Raises:
        Exception: the transport's own: the broker cannot be reached.
    """
    kind = app.connection_for_write().transport.driver_type
    options: dict[str, Any] = {}
    if kind == "amqp":
        options = {"confirm_publish": True, "read_timeout": timeout, "write_timeout": timeout}
    elif kind == "redis":
        options = {"socket_timeout": timeout, "socket_connect_timeout": timeout, "retry_on_timeout": False}
    connection = app.connection_for_write(transport_options=options, connect_timeout=timeout)
    connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, interval_max=0)
    return connection
