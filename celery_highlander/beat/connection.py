"""The way of an active beat to the tick ledger: its keeper, which talks to the database for it."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any

from celery_highlander.errors import ERRORS_BY_CODE, DatabaseUnavailableError, HighlanderError
from celery_highlander.keeper.children import LEDGER_VARIABLE, raw_address
from celery_highlander.keeper.messages import MessageError
from celery_highlander.keeper.tick_messages import Lines, of_advance, state_of, tick_of
from celery_highlander.worker import native

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from celery_highlander.store.ticks import Advance, EntryState, Tick

ANSWER_TIMEOUT = 30.0
"""Seconds for the keeper to answer; it may have to try one host of the database after the other."""


class LedgerConnection:
    """The ledger of one term, with the methods of `celery_highlander.store.ticks.Ledger`.

    Each of them raises what that one raises, and `DatabaseUnavailableError` where keeper or database do not answer.

    Args:
        key: the beat's lock key.
        token: the term.
    """

    def __init__(self, key: int, token: int) -> None:
        self.key = key
        self._term = {"key": key, "token": token}
        self._socket: Any = None
        self._lines: Lines | None = None

    def load(self, started: Mapping[str, datetime]) -> dict[str, EntryState]:
        """See `Ledger.load`."""
        answer = self._ask("load", started={name: at.isoformat() for name, at in started.items()})
        return {name: state_of(row) for name, row in answer["states"].items()}

    def seen(self, names: Iterable[str]) -> None:
        """See `Ledger.seen`."""
        self._ask("seen", names=list(names))

    def open_ticks(self) -> list[Tick]:
        """See `Ledger.open_ticks`."""
        return list(map(tick_of, self._ask("open_ticks")["ticks"]))

    def again(self, ids: Sequence[str]) -> list[Tick]:
        """See `Ledger.again`."""
        return list(map(tick_of, self._ask("again", ids=list(ids))["ticks"])) if ids else []

    def claim(self, advances: Sequence[Advance]) -> set[str]:
        """See `Ledger.claim`."""
        return set(self._ask("claim", advances=list(map(of_advance, advances)))["ids"])

    def settle(self, outcomes: Mapping[str, str | None]) -> None:
        """See `Ledger.settle`."""
        self._ask("settle", outcomes=dict(outcomes))

    def prune(self) -> int:
        """See `Ledger.prune`."""
        return int(self._ask("prune")["count"])

    def _ask(self, what: str, **values: object) -> dict[str, Any]:
        try:
            if self._lines is None:
                self._lines = self._connect()
            self._lines.send({"ask": what, **self._term, **values})
            answer = self._lines.receive()
        except (OSError, MessageError) as error:
            self.close()
            raise DatabaseUnavailableError(f"the keeper does not answer for the tick ledger: {error}") from None
        if told := answer.get("error"):
            raise ERRORS_BY_CODE.get(told["code"], HighlanderError)(told["message"], told["hint"])
        return answer

    def _connect(self) -> Lines:
        self._socket = native.unix_socket()
        self._socket.settimeout(ANSWER_TIMEOUT)
        address = os.environ.get(LEDGER_VARIABLE)
        if address is None:
            raise FileNotFoundError("this process has none")
        self._socket.connect(raw_address(address))
        return Lines(self._socket)

    def abort(self) -> None:
        """End the wait for an answer. On any thread."""
        sock = self._socket
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up."""
        sock, self._socket, self._lines = self._socket, None, None
        if sock is not None:
            sock.close()
