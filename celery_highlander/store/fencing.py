"""Fencing: making the check of a term indivisible from a write in the caller's own transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from celery_highlander.election.keys import lock_key
from celery_highlander.errors import StaleTermError
from celery_highlander.store import sa
from celery_highlander.store.migrations import prefix

if TYPE_CHECKING:
    from sqlalchemy import Connection

FENCED_TIMEOUT = 5.0
"""Seconds for which a fenced transaction may sit idle before the server ends it: it holds back the next term."""


def fence(connection: Connection, namespace: str, name: str, token: int, *, schema: str = "") -> None:
    """Tie the transaction of `connection` to the term `token` of the singleton `name`.

    Takes a key-share lock on the term's row. From here to the end of the transaction nobody can begin a later term of
    this singleton, so what the transaction writes is written under this term, or not at all. Heartbeats are not held
    up. The connection has to lead to the database of the lock; the server ends the transaction when it idles for
    `FENCED_TIMEOUT` seconds.

    Raises:
        StaleTermError: a later term has begun; roll back, and stop working.
    """
    fence_key(connection, lock_key(namespace, name), token, f"the term of {name!r}", schema=schema)


def fence_key(connection: Connection, key: int, token: int, what: str, *, schema: str = "") -> None:
    """Do what `fence` does, for a lock key; `what` is what holds the token.

    Raises:
        StaleTermError: the key has a later token.
    """
    connection.execute(sa.text(_LIMIT))
    sql = sa.text(_LOCK.format(prefix=prefix(schema), key=":key", number=":token"))
    if connection.execute(sql, {"key": key, "token": token}).first() is None:
        raise _stale(what, token)


def fence_key_with(cursor: Cursor, key: int, token: int, what: str, *, schema: str = "") -> None:
    """Do what `fence_key` does, over a cursor of psycopg or psycopg2, or of a framework that wraps one.

    Raises:
        StaleTermError: the key has a later token.
    """
    cursor.execute(_LIMIT)
    cursor.execute(_LOCK.format(prefix=prefix(schema), key="%s", number="%s"), (key, token))
    if cursor.fetchone() is None:
        raise _stale(what, token)


class Cursor(Protocol):
    """A cursor of the DB-API (PEP 249) with `%s` for parameters."""

    def execute(self, sql: str, parameters: tuple[object, ...] = ..., /) -> object:
        """Run a statement."""

    def fetchone(self) -> object:
        """Return the next row, or None."""


def _stale(what: str, token: int) -> StaleTermError:
    return StaleTermError(
        f"{what} with the token {token} is over: a later one has begun.",
        "This process was paused, or cut off, while another node took over; its transaction must not commit.",
    )


_LIMIT = f"select set_config('idle_in_transaction_session_timeout', '{int(FENCED_TIMEOUT * 1000)}', true)"
_LOCK = "select 1 from {prefix}singleton where key = {key} and token = {number} for key share"
