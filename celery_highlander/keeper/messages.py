"""The messages between a worker, its keeper and singleton processes: one JSON object a line, over a Unix socket pair.

Every message has a `type`; a receiver ignores types and fields that it does not know, so that two releases can
talk.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Mapping
from typing import Any

Message = dict[str, Any]

_CHUNK = 65536


class ChannelClosedError(ConnectionError):
    """The other side is gone, or has not read for so long that the buffer is full."""


class Channel:
    """One end of a socket pair; never blocks. `send` may be called from any thread."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._buffer = b""
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """The descriptor to wait on for reading."""
        return self._socket.fileno()

    def send(self, type_: str, **fields: object) -> None:
        """Send one message.

        Raises:
            ChannelClosedError: it could not be sent as a whole; the channel is of no use any more.
        """
        line = json.dumps({"type": type_, **fields}, default=_plain).encode() + b"\n"
        with self._lock:
            try:
                sent = self._socket.send(line, socket.MSG_NOSIGNAL)
            except OSError as error:
                raise ChannelClosedError(f"cannot send {type_!r}: {error}") from error
            if sent != len(line):
                raise ChannelClosedError(f"cannot send {type_!r}: the other side does not read")

    def receive(self) -> list[Message]:
        """Return the messages that have arrived.

        Raises:
            ChannelClosedError: the other side closed, and nothing is left to read.
        """
        closed = False
        while True:
            try:
                chunk = self._socket.recv(_CHUNK)
            except BlockingIOError:
                break
            except OSError:
                chunk = b""
            if not chunk:
                closed = True
                break
            self._buffer += chunk
        *lines, self._buffer = self._buffer.split(b"\n")
        if closed and not lines:
            raise ChannelClosedError("the other side closed")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (frozenset, set, tuple)):
        return list(value)
    raise TypeError(f"{type(value).__name__} does not fit into a message")
