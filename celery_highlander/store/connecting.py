"""Opening a connection that may hold a session lock, and refusing one that may not; knows nothing of terms.

Why the lock session is as it is
================================

The lock lives exactly as long as one PostgreSQL backend. So the connection is one of its own (no pool: a pooled one
keeps its locks when it is given back), in autocommit mode (otherwise it idles in a transaction, which holds back
VACUUM), and direct:

- A pooler answers for many backends. In transaction mode every statement may meet another one, so two clients both
  "hold" the lock, and it stays behind on the pooled backend. In session mode it is held for as long as the pooler
  likes, not the holder. The two cannot be told apart from the client's side, so both are refused: the backend's pid in
  the connection's start-up message differs from `pg_backend_pid()` behind a pooler, and never without one.
- A hot standby grants the same key as its primary.

The *server* has to notice a silent holder, or nobody can take over while the network is cut. Keepalives do not do it
(while a reply is unacknowledged the retransmission timer runs in their stead, for a quarter of an hour).
`idle_session_timeout` does; it came with PostgreSQL 14.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

from celery_highlander.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    HighlanderError,
    LockSessionError,
    PoolerError,
    ServerVersionError,
    StandbyServerError,
)
from celery_highlander.store import sa

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import URL, Connection

    from celery_highlander.election.lease import Timing

CONNECT_TIMEOUT = 3
"""Seconds for one host of the URL to accept a connection."""

ANSWER_TIMEOUT = 5.0
"""Seconds that a command waits for the server to answer."""

_GUESS = "This probably means the server terminated abnormally before or while processing the request."  # of libpq

LOCK_TIMEOUT = 0.2
"""Seconds that a new term waits for a fenced transaction of the old one, before it gives the lock back for now."""

MINIMUM_VERSION = 140000

POOLER_CURE = (
    "Point highlander_url at PostgreSQL itself (its own port, not the pooler's); one connection for each node is all "
    "that is needed. The rest of the application may keep using the pooler."
)


STANDBY_CURE = (
    "Point highlander_url at the primary: the read-write service of the cluster, or several hosts with "
    "'?target_session_attrs=read-write'."
)


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect to: a SQLAlchemy URL and the driver's further arguments; neither shows in its `repr`."""

    url: str
    connect_args: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"Target({redacted(self.url)})"


@dataclass(frozen=True, slots=True)
class Server:
    """What there is to know of the server behind a lock session.

    Attributes:
        backend_pid: the process that holds our locks.
        version: such as 150018.
        instance: changes when the server was restarted or another one was promoted.
        timeline: the WAL timeline, which only rises, by one with each promotion.
    """

    backend_pid: int
    version: int
    instance: str
    timeline: int


_SECRET_OPTIONS = ("password", "sslpassword")


def redacted(url: str) -> str:
    """Return the URL with its passwords as `***`; nothing of it if it cannot be parsed."""
    try:
        parsed = sa.make_url(url)
    except (sa.ArgumentError, ValueError):
        return "<a URL that cannot be parsed>"
    shown = parsed.update_query_dict({name: "***" for name in _SECRET_OPTIONS if name in parsed.query})
    return shown.render_as_string(hide_password=True)


_ORDINARY = re.compile(
    r"(?P<scheme>postgresql[\w+]*://)(?:(?P<user>[\w.~%-]*)(?P<password>:[^\s@/?]*)?@)?(?P<place>[\w.-]*(?::[1-9]\d*)?(?:/[\w.~%-]*)?)"
    r"(?:\?[\w.~%=&:/,+-]*)?"
)
"""A URL that SQLAlchemy takes apart in just this way; whether it does need not be tried."""


def place_of(url: str) -> str:
    """Return the URL without query, its password as `***`; nothing of it if it cannot be parsed."""
    if found := _ORDINARY.fullmatch(url):
        user = "" if found["user"] is None else f"{found['user']}{':***' if found['password'] else ''}@"
        return f"{found['scheme']}{user}{found['place']}"
    try:
        return sa.make_url(url).set(query={}).render_as_string()
    except (sa.ArgumentError, ValueError):
        return redacted(url)


def check_url(url: str) -> None:
    """Do nothing for a URL that can be parsed.

    Raises:
        ConfigurationError: see `parse_url`.
    """
    if not _ORDINARY.fullmatch(url):
        parse_url(url)


def parse_url(url: str) -> URL:
    """Return the parsed URL.

    Raises:
        ConfigurationError: it cannot be parsed; the message does not show it.
    """
    try:
        parsed = sa.make_url(url)
    except (sa.ArgumentError, ValueError) as error:
        # the driver's message may quote the URL, password and all: it is not chained into ours
        raise ConfigurationError(
            "highlander_url cannot be parsed as a database URL; it should look like "
            f"'postgresql+psycopg2://app@db/shop' (special characters in a password have to be percent-encoded; "
            f"{type(error).__name__})"
        ) from None
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg2")
    return parsed


def _secrets(target: Target) -> set[str]:
    """Every password of `target`, as it is written and as it is meant."""
    found = {str(target.connect_args.get(name) or "") for name in _SECRET_OPTIONS}
    found.update(re.findall(r"password\s*=\s*'?([^\s']+)", str(target.connect_args.get("dsn") or "")))
    with contextlib.suppress(sa.ArgumentError, ValueError):
        url = sa.make_url(target.url)
        found |= {str(url.password or "")} | {str(url.query.get(name) or "") for name in _SECRET_OPTIONS}
    found.discard("")
    # as it is meant, as SQLAlchemy writes it (" +"), and as others do
    return {form for one in found for form in (one, quote(one, safe=" +"), quote(one, safe=""), quote_plus(one))}


def without_password(message: str, target: Target) -> str:
    """Return `message`, one line, with every password of `target` replaced."""
    line = " ".join(message.split())
    for secret in sorted(_secrets(target), key=len, reverse=True):
        line = line.replace(secret, "***")
    return line


def open_connection(target: Target, application_name: str, timing: Timing | None = None) -> Connection:
    """Open a direct autocommit connection of its own.

    Raises:
        ConfigurationError: the URL or the driver's arguments cannot work.
        DatabaseUnavailableError: the server does not answer, or does not let this role in.
    """
    url = parse_url(target.url)
    arguments: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT,
        "keepalives": 1,
        "keepalives_idle": 2,
        "keepalives_interval": 1,
        "keepalives_count": 2,
        "client_encoding": "utf8",
    }
    patience = timing.heartbeat_timeout if timing is not None else ANSWER_TIMEOUT
    arguments["tcp_user_timeout"] = int(patience * 1000)
    arguments |= target.connect_args
    arguments["application_name"] = application_name
    try:
        engine = sa.create_engine(
            url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT", connect_args=arguments, hide_parameters=True
        )
    except ImportError as error:
        raise ConfigurationError(
            f"the driver of highlander_url is not installed: {error}",
            "Install psycopg2-binary, or celery-highlander[psycopg] for 'postgresql+psycopg://'.",
        ) from error
    where = redacted(target.url)
    try:
        return engine.connect()
    except sa.DBAPIError as error:
        message = without_password(str(error.orig), target)
        if "unsupported startup parameter" in message:  # PgBouncer's words; no PostgreSQL says so
            raise PoolerError(f"{where} leads to a connection pooler ({message}).", POOLER_CURE) from None
        raise _unavailable(where, message) from None
    except UnicodeDecodeError:  # psycopg2: the server's message is in another encoding than it claims
        raise _unavailable(where, "the server refused, in words that cannot be decoded") from None
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"cannot connect to {where}: {without_password(str(error), target)}") from None


def _unavailable(where: str, message: str) -> DatabaseUnavailableError:
    hints = {
        "password authentication failed": "Check user and password in highlander_url.",
        "no password supplied": "Give the password in highlander_url, in ~/.pgpass or through highlander_engine.",
        "does not exist": "Check the names of role and database in highlander_url.",
        "no pg_hba.conf entry": "Allow this host, role and database in the server's pg_hba.conf.",
        "permission denied for database": "Grant this role the right to connect to the database.",
        "too many clients": "Raise max_connections: highlander takes one connection for each node.",
        "remaining connection slots": "Raise max_connections: highlander takes one connection for each node.",
        "could not translate host name": "Check the host in highlander_url.",
        "failed to resolve host": "Check the host in highlander_url.",
    }
    hint = next((hint for words, hint in hints.items() if words in message), "")
    return DatabaseUnavailableError(f"cannot connect to {where}: {message}", hint or "Is the server up, and reachable?")


@contextlib.contextmanager
def patience(connection: Connection) -> Iterator[None]:
    """Break the connection if the block takes longer than `ANSWER_TIMEOUT`; a frozen server keeps no limit itself."""
    driver: Any = connection.connection.driver_connection
    with socket.socket(fileno=os.dup(driver.fileno())) as sock:
        timer = threading.Timer(ANSWER_TIMEOUT, sock.shutdown, [socket.SHUT_RDWR])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()


def plain_cursor(connection: Connection) -> Any:
    """Return a cursor of the driver that puts the values into the statement and sends it as text, without SQLAlchemy.

    For prepared statements: of all ways it is the cheapest one that both drivers have.
    """
    driver: Any = connection.connection.driver_connection
    if hasattr(driver, "pgconn"):
        psycopg = importlib.import_module("psycopg")  # only one of the drivers need be there
        return psycopg.ClientCursor(driver)
    return driver.cursor()


def unanswered(error: sa.DBAPIError, target: Target) -> DatabaseUnavailableError:
    """Return what to raise for a statement that failed on an open connection."""
    return DatabaseUnavailableError(f"the database did not answer: {without_password(str(error.orig), target)}")


def check_server(connection: Connection) -> Server:
    """Return what is known of the server, after checking that a session lock means something there.

    Raises:
        PoolerError: there is a pooler in between.
        StandbyServerError: the server is in recovery.
        ServerVersionError: the server is older than PostgreSQL 14.
        LockSessionError: it does not tell its WAL timeline.
    """
    driver: Any = connection.connection.driver_connection
    pid, recovering, version = connection.execute(
        sa.text("select pg_backend_pid(), pg_is_in_recovery(), current_setting('server_version_num')::int")
    ).one()
    if driver.info.backend_pid != pid:
        raise PoolerError(
            f"the database URL leads to a connection pooler: the connection was opened to backend "
            f"{driver.info.backend_pid}, and statements run in backend {pid}. Behind a pooler a session lock protects "
            "nothing.",
            POOLER_CURE,
        )
    if version < MINIMUM_VERSION:
        raise ServerVersionError(
            f"the server is PostgreSQL {version // 10000}.{version % 10000}; 14 or newer is needed, because older "
            "ones do not drop a silent lock session (idle_session_timeout).",
            "Upgrade the server, or give highlander_url a newer one of its own: it needs next to nothing.",
        )
    if recovering:
        raise StandbyServerError(
            "the database URL leads to a hot standby (pg_is_in_recovery() is true), which grants the same lock as "
            "its primary.",
            STANDBY_CURE,
        )
    instance, timeline = _origin(connection)
    return Server(backend_pid=pid, version=version, instance=instance, timeline=timeline)


def _origin(connection: Connection) -> tuple[str, int]:
    """Return what tells this start of this server from any other one, and its WAL timeline."""
    try:
        instance, timeline = connection.execute(
            sa.text(
                "select substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) || '/' "
                "|| extract(epoch from pg_postmaster_start_time())::text, "
                "('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint"
            )
        ).one()
    except sa.DBAPIError as error:
        if error.connection_invalidated:
            raise
        raise LockSessionError(
            "the server does not tell its WAL timeline, without which tokens might not rise over a failover: "
            f"{' '.join(str(error.orig).split())}",
            "Grant the role pg_current_wal_lsn() and pg_walfile_name(); on Aurora set rds.logical_replication = 1; or "
            "give highlander_url a PostgreSQL of its own: it needs next to nothing.",
        ) from None
    return instance, timeline


def guard_session(connection: Connection, timing: Timing) -> None:
    """Set what makes the server drop this session when its holder goes silent; a plain role may set all of it."""
    milliseconds = {
        "idle_session_timeout": timing.lease,
        "idle_in_transaction_session_timeout": timing.heartbeat_timeout,
        "statement_timeout": timing.heartbeat_timeout,
        "lock_timeout": LOCK_TIMEOUT,
        "tcp_user_timeout": timing.lease,
    }
    values = {name: str(max(1, int(seconds * 1000))) for name, seconds in milliseconds.items()}
    values |= {
        "tcp_keepalives_idle": "2",
        "tcp_keepalives_interval": "1",
        "tcp_keepalives_count": "2",
        "synchronous_commit": "on",
    }
    calls = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in values.items())
    connection.execute(sa.text(f"select {calls}"))
    # For a statement that runs while its client is gone. Servers on macOS and Windows refuse it: there
    # `statement_timeout` alone has to do.
    with contextlib.suppress(sa.DBAPIError):
        connection.execute(sa.text("select set_config('client_connection_check_interval', '1000', false)"))


def plain(error: Exception, target: Target) -> str:
    """Return one line about an error of the database, without any password."""
    if isinstance(error, HighlanderError):
        return str(error)
    if isinstance(error, sa.DBAPIError):
        told = without_password(str(error.orig), target).replace(_GUESS, "").strip()
        return told or type(error.orig).__name__
    return without_password(f"{type(error).__name__}: {error}", target)
