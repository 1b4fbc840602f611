"""The tables, by numbered migrations that run once each; knows nothing of elections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, ProgrammingError

from celery_highlander.errors import SchemaError

if TYPE_CHECKING:
    from sqlalchemy import Connection

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # The current term of each singleton. Heartbeats change only columns without an index, so that they stay
        # heap-only; `unique (key, token)` is what a fence locks: its key-share lock lets heartbeats pass, and stops
        # the next term.
        """create table {prefix}singleton (
    key bigint primary key,
    namespace text not null,
    name text not null,
    token bigint not null,
    heartbeats bigint not null,
    owed double precision not null,
    instance text not null,
    unique (namespace, name),
    unique (key, token)
) with (fillfactor = 50)""",
        # Every term there was; `stopped_at` is its stopped mark.
        """create table {prefix}term (
    key bigint not null,
    token bigint not null,
    node text not null,
    worker text not null,
    pid integer not null,
    lease double precision not null,
    began_at timestamptz not null default clock_timestamp(),
    elected_at timestamptz,
    stopped_at timestamptz,
    ended_at timestamptz,
    reason text,
    primary key (key, token)
)""",
    ),
)
VERSION = len(MIGRATIONS)

_MIGRATION_LOCK = 0x6869676C616E6472  # "highlandr"[:8]: one migration at a time in a database


def prefix(schema: str) -> str:
    """What stands before a table's own name in every statement."""
    return f'"{schema}".highlander_' if schema else "highlander_"


def script(schema: str, since: int = 0) -> str:
    """Return the SQL that brings the tables from version `since` to the present one, for a role that may run it."""
    start = [f'create schema if not exists "{schema}"'] if schema else []
    return ";\n\n".join(["begin", *start, *_statements(schema, since), "commit"]) + ";\n"


def _statements(schema: str, since: int) -> list[str]:
    names = prefix(schema)
    statements = [
        f"create table if not exists {names}migration "
        "(version integer primary key, applied_at timestamptz not null default now())"
    ]
    for version in range(since + 1, VERSION + 1):
        statements += [statement.format(prefix=names) for statement in MIGRATIONS[version - 1]]
        statements.append(f"insert into {names}migration (version) values ({version})")
    return statements


def version_of(connection: Connection, schema: str) -> int:
    """Return the version of the tables; 0 where there are none."""
    names = prefix(schema)
    if connection.execute(text("select to_regclass(:table)"), {"table": f"{names}migration"}).scalar() is None:
        return 0
    try:
        found = connection.execute(text(f"select max(version) from {names}migration")).scalar()
    except ProgrammingError as error:
        raise _no_rights(schema, error) from error
    return int(found or 0)


def migrate(connection: Connection, schema: str) -> int:
    """Bring the tables to the present version in one transaction; return the version they had.

    The connection has to be in autocommit mode.

    Raises:
        SchemaError: the role may not do that; the hint has the SQL for one that may.
    """
    connection.execute(text("begin"))
    try:
        connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        if schema:
            exists = text("select 1 from pg_namespace where nspname = :schema")
            if connection.execute(exists, {"schema": schema}).scalar() is None:
                connection.execute(text(f'create schema "{schema}"'))
        since = version_of(connection, schema)
        if since < VERSION:
            for statement in _statements(schema, since):
                connection.execute(text(statement))
        connection.execute(text("commit"))
    except ProgrammingError as error:
        connection.execute(text("rollback"))
        raise _no_rights(schema, error) from error
    except BaseException:
        if not connection.invalidated:
            connection.execute(text("rollback"))
        raise
    return since


def ensure(connection: Connection, schema: str, *, may_migrate: bool) -> None:
    """Check the tables, and bring them up to date where that is allowed.

    Raises:
        SchemaError: they are missing or too old and cannot be changed from here, or newer than this release knows.
    """
    found = version_of(connection, schema)
    if found < VERSION:
        if not may_migrate:
            state = "missing" if not found else f"of version {found}, and this release needs {VERSION}"
            raise SchemaError(
                f"the tables {prefix(schema)}* are {state}, and highlander_migrate is False.",
                "Run `celery -A proj highlander migrate` with a role that may create tables.",
            )
        migrate(connection, schema)
    try:
        connection.execute(text(_RIGHTS.format(prefix=prefix(schema))))
    except ProgrammingError as error:
        raise _no_rights(schema, error) from error


_RIGHTS = """select s.key from {prefix}singleton s join {prefix}term t on t.key = s.key where false for update of s, t"""


def _no_rights(schema: str, error: DBAPIError) -> SchemaError:
    reason = str(error.orig).strip().splitlines()[0]
    names = prefix(schema)
    return SchemaError(
        f"the database role may not use or create the tables {names}*: {reason}.",
        "Let a role that may create them run `celery -A proj highlander migrate` (`--sql` prints the statements), then: "
        f"grant select, insert, update on {names}singleton, {names}term to <role>; "
        f"grant select on {names}migration to <role>.",
    )
