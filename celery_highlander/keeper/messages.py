"""The messages between a worker, its keeper and singleton processes: one JSON object a line, over a Unix socket pair.

Every message has a `type`; a receiver ignores types and fields that it does not know, so that two releases can
talk.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celery_highlander.keeper.vocabulary import fault_in

if TYPE_CHECKING:
    from celery_highlander.keeper.vocabulary import Vocabulary

Message = dict[str, Any]

_CHUNK = 65536

LINE_LIMIT = 4 * 1024 * 1024
"""Bytes of a message at most, so that a line without end does not fill the memory."""

_READ_LIMIT = 2 * LINE_LIMIT  # bytes read at a time, however fast the other side writes

_UNSENT_LIMIT = 4 * 1024 * 1024
"""Bytes that may wait for the other side to read: thousands of singletons elected at once, or a side that is frozen."""


class ChannelClosedError(ConnectionError):
    """The other side is gone, or has not read for so long that the buffer is full."""


class MessageError(ChannelClosedError):
    """The other side speaks nonsense: nothing that it says can be relied on any more, as if it were gone."""


class Channel:
    """One end of a socket pair; never blocks. `send` may be called from any thread.

    Args:
        sock: our end; closed with the channel.
        hears: what the other side may say; without it, anything that is a message.

    The kernel holds only some 300 messages. The rest waits here, and goes out with the next `send` or `flush`: who
    sends bursts has to call `flush` again soon while `has_unsent`.
    """

    def __init__(self, sock: socket.socket, hears: Vocabulary | None = None) -> None:
        sock.setblocking(False)
        self._hears = hears or {}
        self._socket = sock
        self._buffer = b""
        self._unsent = bytearray()
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """The descriptor to wait on for reading."""
        return self._socket.fileno()

    def send(self, type_: str, **fields: object) -> None:
        """Send one message, or keep it until the other side has read more.

        Raises:
            ChannelClosedError: the other side is gone, or has not read for long; the channel is of no use any more.
        """
        line = json.dumps({"type": type_, **fields}, default=_plain).encode() + b"\n"
        with self._lock:
            if len(self._unsent) + len(line) > _UNSENT_LIMIT:
                raise ChannelClosedError(f"cannot send {type_!r}: the other side does not read")
            self._unsent += line
            self._flush()

    @property
    def has_unsent(self) -> bool:
        """Whether messages wait for the other side to read."""
        return bool(self._unsent)

    def flush(self) -> None:
        """Send what waits, as far as it goes.

        Raises:
            ChannelClosedError: the other side is gone.
        """
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        while self._unsent:
            try:
                sent = self._socket.send(self._unsent, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except OSError as error:
                raise ChannelClosedError(f"cannot send: {error}") from error
            del self._unsent[:sent]

    def receive(self) -> list[Message]:
        """Return the messages that have arrived.

        Raises:
            ChannelClosedError: the other side closed, and nothing is left to read.
            MessageError: what has arrived is not made of messages.
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
            if len(self._buffer) > _READ_LIMIT:
                break  # the rest with the next call
            if len(chunk) < _CHUNK:
                break  # that was all
        *lines, self._buffer = self._buffer.split(b"\n")
        if len(self._buffer) > LINE_LIMIT:
            raise MessageError(f"a message of more than {LINE_LIMIT} bytes")
        if closed and not lines:
            raise ChannelClosedError("the other side closed")
        return [parse(line, self._hears) for line in lines if line]

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


def parse(line: bytes, vocabulary: Vocabulary) -> Message:
    """Return the message in a line; types and fields that `vocabulary` does not know pass.

    Raises:
        MessageError: there is none, or it lacks what one of its type must have.
    """
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"not a message ({error}): {line[:80]!r}") from error
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise MessageError(f"a message without a type: {line[:80]!r}")
    if fault := fault_in(message, vocabulary):
        raise MessageError(fault)
    return message


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (frozenset, set, tuple)):
        return list(value)
    raise TypeError(f"{type(value).__name__} does not fit into a message")
