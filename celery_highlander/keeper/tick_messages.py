"""How a beat asks its keeper for the tick ledger: a question and its answer, one JSON object a line.

Instants are texts in ISO 8601 with their offset.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from celery_highlander.keeper.messages import MessageError
from celery_highlander.store.ticks import Advance, EntryState, Tick

if TYPE_CHECKING:
    from collections.abc import Mapping

LINE_LIMIT = 64 * 1024 * 1024
"""Bytes of a line, at most: a hundred thousand entries and more."""

_CHUNK = 262144


class Lines:
    """The lines that come over a connected socket, and those that go; blocks as long as the socket's time-out lets it.

    Args:
        sock: as of `socket.socket`, or of `_socket`.
    """

    def __init__(self, sock: Any) -> None:
        self._socket = sock
        self._read = bytearray()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one object.

        Raises:
            OSError: the other side is gone, or does not read.
        """
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any]:
        """Return the next object; after a `TimeoutError` what came so far is kept.

        Raises:
            OSError: the other side is gone, or says nothing.
            MessageError: what came is no object.
        """
        searched = 0
        while (end := self._read.find(b"\n", searched)) < 0:
            searched = len(self._read)
            if searched > LINE_LIMIT:
                raise MessageError(f"a line of more than {LINE_LIMIT} bytes")
            chunk = self._socket.recv(_CHUNK)
            if not chunk:
                raise ConnectionResetError("the other side closed")
            self._read += chunk
        line = bytes(self._read[:end])
        del self._read[: end + 1]
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MessageError(f"not a message ({error}): {line[:80]!r}") from None
        if not isinstance(message, dict):
            raise MessageError(f"not an object: {line[:80]!r}")
        return message


def of_tick(tick: Tick) -> list[Any]:
    """Return what `tick_of` makes a tick of."""
    return [tick.id, tick.entry, tick.due_at.isoformat(), tick.attempt]


def tick_of(row: list[Any]) -> Tick:
    """Return the tick in a message."""
    ident, entry, due_at, attempt = row
    return Tick(str(ident), str(entry), datetime.fromisoformat(due_at), int(attempt))


def of_advance(advance: Advance) -> list[Any]:
    """Return what `advance_of` makes an advance of."""
    return [advance.entry, advance.last_run_at.isoformat(), advance.skipped, [of_tick(tick) for tick in advance.ticks]]


def advance_of(row: list[Any]) -> Advance:
    """Return the advance in a message."""
    entry, last_run_at, skipped, ticks = row
    return Advance(str(entry), datetime.fromisoformat(last_run_at), int(skipped), tuple(map(tick_of, ticks)))


def of_state(state: EntryState) -> list[Any]:
    """Return what `state_of` makes an entry's state of."""
    return [state.last_run_at.isoformat(), state.run_count, state.skipped_count]


def state_of(row: list[Any]) -> EntryState:
    """Return the state in a message."""
    last_run_at, run_count, skipped_count = row
    return EntryState(datetime.fromisoformat(last_run_at), int(run_count), int(skipped_count))
