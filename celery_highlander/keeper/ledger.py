"""Asks the tick ledger which messages may be run, over a connection of its own; knows nothing of elections.

Never over the lock session: an error there, or a wait for a row, would cost the leadership. The connection is opened
by the first question, and closed when there was none for a while: most nodes have none most of the time.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from celery_highlander.store import connecting
from celery_highlander.store.migrations import grants, prefix
from celery_highlander.store.ticks import claim_runs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy import Connection

    from celery_highlander.keeper.session import SessionPlan

    Copy = tuple[str, str]
    """A tick and one copy of its message."""

logger = logging.getLogger(__name__)

IDLE_DURATION = 30.0
"""Seconds without a question after which the connection is closed."""

BATCH = 500
"""Questions that are asked in one statement, at most."""

LONGEST_PAUSE = 2.0
"""Seconds between two tries, at most."""

_FIRST_PAUSE = 0.1

_CANNOT = frozenset({"42501", "42P01", "42703", "3F000"})  # no right, no such table, no such column, no such schema


class RunLedger:
    """The questions of one worker.

    Args:
        plan: of the lock session; read for where to connect to, and how patiently.
        tell: gets the answers, (tick, copy, whether it may be run), on a thread of its own.
    """

    def __init__(self, plan: SessionPlan, tell: Callable[[list[tuple[str, str, bool]]], None]) -> None:
        self._plan = plan
        self._tell = tell
        self._target = connecting.Target("postgresql://", {})
        self._changed = threading.Condition()
        self._wanted: dict[Copy, None] = {}  # in the order in which they are asked
        self._is_running = False
        self._limit = BATCH
        self._failures = 0
        self._trouble = ""

    def ask(self, copies: Iterable[Copy]) -> None:
        """Have these answered, sooner or later; one that is asked twice may be answered once."""
        with self._changed:
            self._wanted.update(dict.fromkeys(copies))
            if not self._is_running:
                self._is_running = True
                threading.Thread(target=self._run, name="tick-ledger", daemon=True).start()
            self._changed.notify()

    def _run(self) -> None:
        connection: Connection | None = None
        while batch := self._next():
            is_fresh = connection is None
            try:
                if connection is None:
                    connection = self._open()
                with connecting.patience(connection):
                    answers = claim_runs(connection, self._plan.schema, batch)
            except Exception as error:  # noqa: BLE001  # whatever it is, the questions stay
                if _sqlstate(error) in _CANNOT:
                    self._complain_of_tables(error)
                    self._answer(dict.fromkeys(batch, True))
                    continue
                _close(connection)
                connection = None
                # One that sat idle may have been closed by whomever: that is no trouble yet.
                self._postpone(batch, error if is_fresh else None)
            else:
                self._answer(answers)
                self._succeeded()
        _close(connection)

    def _next(self) -> list[Copy]:
        """Wait for questions; none come back when there was none for so long that the thread has to end."""
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._wanted), IDLE_DURATION):
                self._is_running = False
            return list(itertools.islice(self._wanted, self._limit))

    def _open(self) -> Connection:
        plan = self._plan
        self._target = plan.target()
        name = f"highlander-ledger {plan.namespace} {plan.who.node}"
        connection = connecting.open_connection(self._target, name, plan.timing)
        try:
            with connecting.patience(connection):
                connecting.check_server(connection)
                connecting.guard_session(connection, replace(plan.timing, lease=2 * IDLE_DURATION))
        except BaseException:
            _close(connection)
            raise
        return connection

    def _answer(self, answers: dict[Copy, bool]) -> None:
        with self._changed:
            for copy in answers:
                self._wanted.pop(copy, None)
        self._tell([(*copy, may_run) for copy, may_run in answers.items()])

    def _postpone(self, batch: list[Copy], error: Exception | None) -> None:
        """Put questions behind the others, and have all asked one by one: a locked row keeps back no others."""
        with self._changed:
            for copy in batch:
                self._wanted[copy] = self._wanted.pop(copy)
        self._limit = 1
        if error is None:
            return
        if self._trouble != "away":
            self._trouble = "away"
            logger.warning(
                "the messages of ticks wait: the database cannot be asked whether they have run (%s)",
                connecting.plain(error, self._target),
                extra={"action": "tick_runs_wait"},
            )
        pause = min(LONGEST_PAUSE, _FIRST_PAUSE * 2**self._failures)
        self._failures = min(self._failures + 1, 10)
        time.sleep(pause * random.uniform(0.5, 1.0))

    def _succeeded(self) -> None:
        self._limit = min(BATCH, 2 * self._limit)
        self._failures = 0
        if self._trouble and not self._wanted:
            self._trouble = ""
            logger.info("the ledger of ticks can be used again", extra={"action": "tick_runs_known"})

    def _complain_of_tables(self, error: Exception) -> None:
        if self._trouble != "tables":
            self._trouble = "tables"
            schema = self._plan.schema
            logger.error(
                "messages of ticks are run WITHOUT asking whether they have run already: %s cannot be used (%s). Run "
                "`celery -A proj highlander migrate` with a role that may change tables, and: %s",
                f"{prefix(schema)}tick",
                connecting.plain(error, self._target),
                grants(schema, "<role>"),
                extra={"action": "tick_runs_unknown"},
            )


def _sqlstate(error: Exception) -> str:
    """The server's code for an error; empty where there is none."""
    driver = error.orig if isinstance(error, DBAPIError) else None
    return str(getattr(driver, "sqlstate", None) or getattr(driver, "pgcode", None) or "")


def _close(connection: Connection | None) -> None:
    """Drop the connection, without any farewell that could block."""
    if connection is not None:
        with contextlib.suppress(Exception):
            connection.connection.driver_connection.close()  # type: ignore[union-attr]  # a real connection
        with contextlib.suppress(Exception):
            connection.close()
