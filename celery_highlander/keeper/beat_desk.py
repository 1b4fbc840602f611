"""Where the beat of this node asks for the tick ledger; each beat has a thread and a connection to the database.

So a beat needs no driver of its own, and no statement of the ledger comes near the lock session: not its connection,
not its thread, not the keeper's loop. When the beat hangs up, or dies, its connection is closed. That the ledger is
written by the present term alone is the statements' to see to (`celery_highlander.store.ticks`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from datetime import datetime
from typing import TYPE_CHECKING, Any

from celery_highlander.errors import DatabaseUnavailableError, HighlanderError
from celery_highlander.keeper.children import ledger_address, listen, peer
from celery_highlander.keeper.messages import MessageError
from celery_highlander.keeper.tick_messages import Lines, advance_of, of_state, of_tick
from celery_highlander.store import connecting, migrations, sa
from celery_highlander.store.ticks import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from celery_highlander.keeper.session import SessionPlan

logger = logging.getLogger(__name__)

_PATIENCE = 10.0
"""Seconds for a beat to take its answer."""


class BeatDesk:
    """The ledger's desk of one keeper.

    Args:
        address: of the keeper.
        plan: of the lock session; read for where to connect to, and how patiently.
    """

    def __init__(self, address: str, plan: SessionPlan) -> None:
        self._plan = plan
        self._listener = listen(ledger_address(address))
        self._listener.setblocking(True)
        threading.Thread(target=self._accept, name="beat-desk", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if peer(connection)[1] in {os.getuid(), os.geteuid()}:
                beat = _Beat(connection, self._plan)
                threading.Thread(target=beat.serve, name="beat-ledger", daemon=True).start()
            else:
                connection.close()

    def close(self) -> None:
        """Listen no more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # which wakes who waits in `accept`
        self._listener.close()


class _Beat:
    """One beat, for one term."""

    def __init__(self, sock: socket.socket, plan: SessionPlan) -> None:
        self._socket = sock
        self._plan = plan
        self._target = connecting.Target("postgresql://", {})
        self._connection: Connection | None = None
        self._ledger: Ledger | None = None

    def serve(self) -> None:
        """Answer until the beat hangs up."""
        self._socket.settimeout(_PATIENCE)
        lines = Lines(self._socket)
        try:
            while True:
                try:
                    question = lines.receive()
                except TimeoutError:
                    continue
                lines.send(self._answer(question))
        except MessageError as error:
            logger.error("a beat speaks nonsense: %s", error, extra={"action": "nonsense"})  # noqa: TRY400  # no traceback
        except OSError:
            pass
        finally:
            self._socket.close()
            if self._connection is not None:
                _drop(self._connection)

    def _answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """What came of a question, or `error` with its code, message and hint."""
        ask = question.get("ask")
        do = _ANSWERS.get(ask) if isinstance(ask, str) else None
        if do is None:
            raise MessageError(f"{question!r:.80}")
        try:
            ledger, connection = self._opened(int(question["key"]), int(question["token"]))
            with connecting.patience(connection):
                return do(ledger, question)
        except HighlanderError as error:
            told = error
        except sa.DBAPIError as error:
            told = DatabaseUnavailableError(connecting.plain(error, self._target))
        except Exception as error:
            logger.exception("the beat's question %r cannot be answered", ask)
            told = HighlanderError(connecting.plain(error, self._target))
        return {"error": {"code": told.code, "message": told.message, "hint": told.hint}}

    def _opened(self, key: int, token: int) -> tuple[Ledger, Connection]:
        if self._ledger is not None and self._connection is not None:
            return self._ledger, self._connection
        plan = self._plan
        self._target = plan.target()
        connection = connecting.open_connection(self._target, f"highlander-beat {plan.namespace}", plan.timing)
        self._connection = connection  # closed in the end, whatever comes
        limit = str(int(plan.timing.heartbeat_timeout * 1000))
        limits = ("statement_timeout", "lock_timeout", "tcp_user_timeout", "idle_in_transaction_session_timeout")
        calls = ", ".join(f"set_config('{name}', '{limit}', false)" for name in limits)
        with connecting.patience(connection):
            connection.execute(sa.text(f"select {calls}"))
            migrations.ensure_rights(connection, plan.schema, migrations.BEAT_RIGHTS)
        self._ledger = Ledger(connection, key, token, plan.schema)
        return self._ledger, connection


def _drop(connection: Connection) -> None:
    with contextlib.suppress(Exception):
        connection.close()


def _load(ledger: Ledger, question: dict[str, Any]) -> dict[str, Any]:
    states = ledger.load({name: datetime.fromisoformat(at) for name, at in question["started"].items()})
    return {"states": {name: of_state(state) for name, state in states.items()}}


def _seen(ledger: Ledger, question: dict[str, Any]) -> dict[str, Any]:
    ledger.seen(question["names"])
    return {}


def _settle(ledger: Ledger, question: dict[str, Any]) -> dict[str, Any]:
    ledger.settle(question["outcomes"])
    return {}


_ANSWERS: dict[str, Callable[[Ledger, dict[str, Any]], dict[str, Any]]] = {
    "load": _load,
    "seen": _seen,
    "open_ticks": lambda ledger, _: {"ticks": [of_tick(tick) for tick in ledger.open_ticks()]},
    "again": lambda ledger, question: {"ticks": [of_tick(tick) for tick in ledger.again(question["ids"])]},
    "claim": lambda ledger, question: {"ids": sorted(ledger.claim([advance_of(one) for one in question["advances"]]))},
    "settle": _settle,
    "prune": lambda ledger, _: {"count": ledger.prune()},
}
