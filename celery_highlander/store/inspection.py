"""What a role finds in a database: facts for `celery -A proj highlander doctor`; judges nothing, changes nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery_highlander.errors import LockSessionError, SchemaError
from celery_highlander.store import migrations, sa
from celery_highlander.store.connecting import (
    Target,
    check_server,
    guard_session,
    open_connection,
    patience,
    plain,
    unanswered,
)
from celery_highlander.store.terms import collisions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection

    from celery_highlander.election.lease import Timing
    from celery_highlander.store.connecting import Server


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What was found; an error stands where a fact could not be had because of it.

    Attributes:
        role, database: who asked, and where.
        version: of the server, as it tells it itself.
        server: of a server that may hold session locks, or why it may not.
        tables: their version, or why it cannot be told.
        missing_rights: what the role may not do with the tables of elections; None where there are none.
        missing_rights_of_beat, missing_rights_of_runs: the same of the tables of the beat, and of singleton tasks.
        may_create: whether the role may create the tables.
        collisions: the application's singletons whose lock key belongs to another one: name, its namespace, its name.
        strangers: those whose lock key is held by a session that is not highlander's: name, application name, pid.
        session: None if the session settings of a lock session can be made, or why not.
        clock_ahead: seconds that the server's clock is ahead of this machine's, give or take half a round trip.
        round_trip: seconds from a statement to its answer.
        connections: how many are open; `max_connections`: how many may be, without the reserved ones.
    """

    role: str
    database: str
    version: str
    server: Server | LockSessionError
    tables: int | SchemaError
    missing_rights: list[str] | None
    missing_rights_of_beat: list[str] | None
    missing_rights_of_runs: list[str] | None
    may_create: bool
    collisions: list[tuple[str, str, str]]
    strangers: list[tuple[str, str, int]]
    session: str | None
    clock_ahead: float
    round_trip: float
    connections: int
    max_connections: int


def inspect(target: Target, schema: str, timing: Timing, namespace: str, keys: Mapping[str, int]) -> Inspection:
    """Look around in the database of `target`.

    Args:
        target: where to connect to.
        schema: of the tables.
        timing: of the lease.
        namespace: of the application.
        keys: its singletons' names and lock keys.

    Raises:
        DatabaseUnavailableError: it cannot be reached.
        ConfigurationError: the URL or the driver's arguments cannot work.
        PoolerError: a pooler refuses the connection altogether.
    """
    connection = open_connection(target, "highlander-doctor", timing)
    try:
        with patience(connection):
            return _inspect(connection, target, schema, timing, namespace, keys)
    except sa.DBAPIError as error:
        raise unanswered(error, target) from None
    finally:
        connection.close()


def _inspect(
    connection: Connection, target: Target, schema: str, timing: Timing, namespace: str, keys: Mapping[str, int]
) -> Inspection:
    role, database, version = _row(connection, "select current_user, current_database(), version()")
    clock_ahead, round_trip = _compare_clocks(connection)
    tables: int | SchemaError
    try:
        tables = migrations.version_of(connection, schema)
    except SchemaError as error:
        tables = error
    server: Server | LockSessionError
    try:
        server = check_server(connection)
    except LockSessionError as error:
        server = error
    connections, maximum = _row(
        connection,
        "select count(*), current_setting('max_connections')::int "
        "- current_setting('superuser_reserved_connections')::int from pg_stat_activity "
        "where backend_type = 'client backend'",
    )
    missing_rights = _missing_rights(connection, schema, tables, migrations.ELECTION_RIGHTS)
    return Inspection(
        role=role,
        database=database,
        version=" ".join(version.split()[:2]),
        server=server,
        tables=tables,
        missing_rights=missing_rights,
        missing_rights_of_beat=_missing_rights(connection, schema, tables, migrations.BEAT_RIGHTS),
        missing_rights_of_runs=_missing_rights(connection, schema, tables, migrations.RUN_RIGHTS),
        may_create=_may_create(connection, schema),
        collisions=[] if missing_rights != [] else collisions(connection, schema, namespace, keys),
        strangers=_strangers(connection, keys),
        session=None if isinstance(server, LockSessionError) else _try_session(connection, target, timing),
        clock_ahead=clock_ahead,
        round_trip=round_trip,
        connections=connections,
        max_connections=maximum,
    )


def _row(connection: Connection, sql: str, **values: object) -> Any:
    return connection.execute(sa.text(sql), values).one()


def _compare_clocks(connection: Connection) -> tuple[float, float]:
    """Return the server's lead over this machine's clock, and the time that asking took."""
    before, started = time.time(), time.monotonic()
    (theirs,) = _row(connection, "select extract(epoch from clock_timestamp())::float8")
    took = time.monotonic() - started
    return theirs - (before + took / 2), took


def _missing_rights(
    connection: Connection, schema: str, tables: int | SchemaError, rights: Mapping[str, tuple[str, ...]]
) -> list[str] | None:
    if isinstance(tables, SchemaError) or tables < migrations.VERSION:
        return None  # some of them are not there yet
    return migrations.missing_rights(connection, schema, rights)


def _strangers(connection: Connection, keys: Mapping[str, int]) -> list[tuple[str, str, int]]:
    names = {key: name for name, key in keys.items()}
    found = connection.execute(
        sa.text(
            """
select (l.classid::bigint << 32) | l.objid::bigint as key, coalesce(a.application_name, ''), l.pid
from pg_locks l left join pg_stat_activity a on a.pid = l.pid
where l.locktype = 'advisory' and l.objsubid = 1 and l.granted
    and l.database = (select oid from pg_database where datname = current_database())
    and (l.classid::bigint << 32) | l.objid::bigint = any(cast(:keys as bigint[]))
    and coalesce(a.application_name, '') not like 'highlander %'
order by l.pid"""
        ),
        {"keys": list(names)},
    )
    return [(names[key], application, pid) for key, application, pid in found]


def _may_create(connection: Connection, schema: str) -> bool:
    """Whether the role may create tables in the schema, or the schema itself."""
    (allowed,) = _row(
        connection,
        """select case
            when place.name is null then has_database_privilege(current_database(), 'create') and :schema <> ''
            else has_schema_privilege(place.name, 'create') end
        from (select case when :schema = '' then current_schema()
            else (select nspname from pg_namespace where nspname = :schema) end::text as name) as place""",
        schema=schema,
    )
    return bool(allowed)


def _try_session(connection: Connection, target: Target, timing: Timing) -> str | None:
    """Make the settings of a lock session, on a connection that is closed afterwards."""
    try:
        guard_session(connection, timing)
    except (sa.DBAPIError, sa.InvalidRequestError) as error:
        return plain(error, target)
    return None
