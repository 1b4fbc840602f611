"""Fencing: making the check of a term indivisible from a write in the caller's own transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from celery_highlander.election.keys import lock_key
from celery_highlander.errors import StaleTermError
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
    connection.execute(
        text("select set_config('idle_in_transaction_session_timeout', :timeout, true)"),
        {"timeout": str(int(FENCED_TIMEOUT * 1000))},
    )
    row = connection.execute(
        text(f"select 1 from {prefix(schema)}singleton where key = :key and token = :token for key share"),  # noqa: S608
        {"key": key, "token": token},
    ).first()
    if row is None:
        raise StaleTermError(
            f"{what} with the token {token} is over: a later one has begun.",
            "This process was paused, or cut off, while another node took over; its transaction must not commit.",
        )
