"""The database connection of an active beat, on which it keeps the ledger; no statement on it may take for ever."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any

from celery_highlander.store import migrations, sa
from celery_highlander.store.connecting import open_connection
from celery_highlander.store.ticks import Ledger

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from celery_highlander.config import Settings
    from celery_highlander.store.connecting import Target


class LedgerConnection:
    """The one connection of an active beat, beside its keeper's; opened when it is needed first.

    Args:
        target: where to connect to.
        settings: the settings.
        key: the beat's lock key.
        token: the term.
    """

    def __init__(self, target: Target, settings: Settings, key: int, token: int) -> None:
        self._target = target
        self._settings = settings
        self.key = key
        self._token = token
        self._connection: Connection | None = None
        self._socket: socket.socket | None = None

    def open(self) -> Ledger:
        """Connect.

        Raises:
            HighlanderError: the server does not let us, or the role may not use the ledger's tables.
        """
        timing = self._settings.timing
        connection = open_connection(self._target, f"highlander-beat {self._settings.namespace}", timing)
        self._connection = connection
        driver: Any = connection.connection.driver_connection
        self._socket = socket.socket(fileno=os.dup(driver.fileno()))
        limit = str(int(timing.heartbeat_timeout * 1000))
        limits = ("statement_timeout", "lock_timeout", "tcp_user_timeout", "idle_in_transaction_session_timeout")
        calls = ", ".join(f"set_config('{name}', '{limit}', false)" for name in limits)
        connection.execute(sa.text(f"select {calls}"))
        migrations.ensure_rights(connection, self._settings.schema, migrations.BEAT_RIGHTS)
        return Ledger(connection, self.key, self._token, self._settings.schema)

    def abort(self) -> None:
        """End whatever statement is under way. On any thread."""
        sock = self._socket
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of the connection."""
        connection, sock, self._connection, self._socket = self._connection, self._socket, None, None
        if sock is not None:
            sock.close()
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()
