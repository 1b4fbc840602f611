"""The tables, by numbered migrations that run once each; knows nothing of elections."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from celery_highlander.errors import SchemaError
from celery_highlander.store import sa

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # The current term of each singleton. Heartbeats change only columns without an index, so that they stay
        # heap-only (`heartbeat_at` is for display); `unique (key, token)` is what a fence locks: its key-share lock
        # lets heartbeats pass, and stops the next term.
        """create table {prefix}singleton (
    key bigint primary key,
    namespace text not null,
    name text not null,
    token bigint not null,
    heartbeats bigint not null,
    heartbeat_at timestamptz not null default clock_timestamp(),
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
    (
        # What a beat knows of each entry of its schedule.
        """create table {prefix}entry (
    key bigint not null,
    name text not null,
    last_run_at timestamptz not null,
    run_count bigint not null default 0,
    skipped_count bigint not null default 0,
    seen_at timestamptz not null default clock_timestamp(),
    primary key (key, name)
) with (fillfactor = 50)""",
        # Every tick that was claimed: `attempts` counts the publications that were begun, `run_by` is the one whose
        # message was run, `settled_at` is when the beat knew what had become of it.
        """create table {prefix}tick (
    id uuid primary key,
    key bigint not null,
    entry text not null,
    due_at timestamptz not null,
    token bigint not null,
    claimed_at timestamptz not null default clock_timestamp(),
    attempts smallint not null default 1,
    settled_at timestamptz,
    failure text,
    run_by uuid,
    run_at timestamptz
)""",
        "create index highlander_tick_open on {prefix}tick (key) where settled_at is null",
    ),
    (
        # A lock session that runs of singleton tasks rely on; `holder` is the node and the number of its session.
        """create table {prefix}runner (
    holder text primary key,
    node text not null,
    worker text not null,
    pid integer not null,
    lease double precision not null,
    heartbeats bigint not null default 0,
    heartbeat_at timestamptz not null default clock_timestamp()
) with (fillfactor = 50)""",
        # The runs that hold a key, or held it when their session was lost. Unlogged: a row costs no write to disk. What
        # is lost with it in a crash, or on a promoted replica, is noticed: then the settled mark is missing, too.
        """create unlogged table {prefix}run (
    key bigint primary key,
    holder text not null,
    lease double precision not null,
    namespace text not null,
    name text not null,
    task text not null,
    task_id text not null,
    since timestamptz not null default clock_timestamp()
) with (fillfactor = 50)""",
        """insert into {prefix}run (key, holder, lease, namespace, name, task, task_id)
values (-1, '', 0, '', '', '', '')""",
        # The message that waits for a key, where only one may; `looked_at` and `missed` are the sweep's: when it looked
        # for that message, and how often in a row it was nowhere.
        """create table {prefix}waiting (
    key bigint primary key,
    namespace text not null,
    name text not null,
    task text not null,
    task_id text not null,
    queue text not null,
    sent_at timestamptz not null default clock_timestamp(),
    expires_at timestamptz,
    looked_at timestamptz not null default clock_timestamp(),
    missed integer not null default 0
)""",
        "create index highlander_waiting_task on {prefix}waiting (task_id)",
    ),
    (
        # Who takes part: names for what `pg_stat_activity` shows as a uuid. Whether a node lives, that view says.
        """create table {prefix}node (
    node text primary key,
    namespace text not null,
    worker text not null,
    pid integer not null,
    release text not null,
    seen_at timestamptz not null default clock_timestamp()
)""",
        # What operators ask of the nodes. `name` is empty for every singleton; `node` is the uuid of the one to drain,
        # or the worker that is preferred; `token` is of the term that has to end. Over when `until` has passed.
        """create table {prefix}order (
    namespace text not null,
    kind text not null,
    name text not null default '',
    node text not null default '',
    token bigint,
    patient boolean not null default true,
    reason text not null default '',
    asked_by text not null default '',
    asked_at timestamptz not null default clock_timestamp(),
    until timestamptz,
    primary key (namespace, kind, name, node)
)""",
    ),
)
VERSION = len(MIGRATIONS)
RUN_VERSION = 3
"""The version that brought the tables of singleton runs."""

ELECTION_RIGHTS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("singleton", "term", "node"), ("select", "insert", "update")),
    "order": ("select",),
}
BEAT_RIGHTS: Mapping[str, tuple[str, ...]] = {
    "entry": ("select", "insert", "update"),
    "tick": ("select", "insert", "update", "delete"),
}
RUN_RIGHTS: Mapping[str, tuple[str, ...]] = dict.fromkeys(
    ("runner", "run", "waiting"), ("select", "insert", "update", "delete")
)

ORDER_RIGHTS: Mapping[str, tuple[str, ...]] = {"order": ("select", "insert", "update", "delete")}
"""What an operator's role may do beside reading."""

_MIGRATION_LOCK = int.from_bytes(b"highland", "big")  # one migration at a time in a database


def prefix(schema: str) -> str:
    """What stands before a table's own name in every statement."""
    return f'"{schema}".highlander_' if schema else "highlander_"


def script(schema: str, since: int = 0) -> str:
    """Return the SQL that brings the tables from version `since` to the present one, for a role that may run it."""
    start = [f'create schema if not exists "{schema}"'] if schema else []
    return ";\n\n".join(["begin", *start, *_statements(schema, since), "commit"]) + ";\n"


def grants(schema: str, role: str) -> str:
    """Return the SQL that lets `role` take part in elections; it may not change the tables."""
    names = prefix(schema)
    usage = f'grant usage on schema "{schema}" to {role}; ' if schema else ""
    return (
        f"{usage}grant select, insert, update on {names}singleton, {names}term, {names}node, {names}order to {role}; "
        f"grant select, insert, update, delete on {names}entry, {names}tick to {role}; "
        f"grant select, insert, update, delete on {names}runner, {names}run, {names}waiting to {role}; "
        f"grant delete on {names}term, {names}node, {names}order to {role}; grant select on {names}migration to {role};"
    )


def _statements(schema: str, since: int) -> list[str]:
    names = prefix(schema)
    columns = "version integer primary key, applied_at timestamptz not null default now()"
    statements = [f"create table if not exists {names}migration ({columns})"]
    for version in range(since + 1, VERSION + 1):
        statements += [statement.format(prefix=names) for statement in MIGRATIONS[version - 1]]
        statements.append(f"insert into {names}migration (version) values ({version})")  # noqa: S608  # our own names
    return statements


def version_of(connection: Connection, schema: str) -> int:
    """Return the version of the tables; 0 where there are none.

    Raises:
        SchemaError: the role may not look.
    """
    names = prefix(schema)
    try:
        if connection.execute(sa.text("select to_regclass(:table)"), {"table": f"{names}migration"}).scalar() is None:
            return 0
        found = connection.execute(sa.text(f"select max(version) from {names}migration")).scalar()  # noqa: S608  # as above
    except sa.ProgrammingError as error:
        raise _no_rights(schema, reason_of(error)) from None
    return int(found or 0)


def migrate(connection: Connection, schema: str) -> int:
    """Bring the tables to the present version in one transaction; return the version they had.

    The connection has to be in autocommit mode. A newer version is left as it is.

    Raises:
        SchemaError: the role may not do that; the hint has the SQL for one that may.
    """
    # Locked before the transaction begins, not within it: a backend remembers that a table was missing, and
    # `to_regclass` believes it until the next transaction begins, whoever has created the table meanwhile.
    connection.execute(sa.text("select pg_advisory_lock(:key)"), {"key": _MIGRATION_LOCK})
    try:
        return _migrate(connection, schema)
    finally:
        with contextlib.suppress(sa.DBAPIError, sa.InvalidRequestError):
            connection.execute(sa.text("select pg_advisory_unlock(:key)"), {"key": _MIGRATION_LOCK})


def _migrate(connection: Connection, schema: str) -> int:
    connection.execute(sa.text("begin"))
    try:
        since = version_of(connection, schema)
        if since < VERSION:
            _create_schema(connection, schema)
            for statement in _statements(schema, since):
                connection.execute(sa.text(statement))
        connection.execute(sa.text("commit"))
    except sa.ProgrammingError as error:
        roll_back(connection)
        raise _no_rights(schema, reason_of(error)) from None
    except BaseException:
        roll_back(connection)
        raise
    return since


def _create_schema(connection: Connection, schema: str) -> None:
    exists = sa.text("select 1 from pg_namespace where nspname = :schema")
    if schema and connection.execute(exists, {"schema": schema}).scalar() is None:
        connection.execute(sa.text(f'create schema "{schema}"'))


def roll_back(connection: Connection) -> None:
    """Roll back, on a connection that may be broken."""
    with contextlib.suppress(sa.DBAPIError, sa.InvalidRequestError):  # a broken connection has rolled back by itself
        connection.execute(sa.text("rollback"))


def ensure(connection: Connection, schema: str, *, may_migrate: bool) -> None:
    """Check the tables, and bring them up to date where that is allowed; newer ones are fine (a rolling upgrade).

    Raises:
        SchemaError: they are missing or too old and cannot be changed from here, or the role may not use them.
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
    ensure_rights(connection, schema, ELECTION_RIGHTS)


def ensure_rights(connection: Connection, schema: str, rights: Mapping[str, tuple[str, ...]]) -> None:
    """Make sure that the role may do with the tables what `rights` says, by the name of the table.

    Raises:
        SchemaError: it may not; the hint has the SQL that lets it.
    """
    missing = missing_rights(connection, schema, rights)
    if missing:
        raise _no_rights(schema, f"it lacks {', '.join(missing)}")


def missing_rights(
    connection: Connection, schema: str, rights: Mapping[str, tuple[str, ...]] = ELECTION_RIGHTS
) -> list[str]:
    """Return what the role may not do with the tables, and has to, such as `insert on highlander_term`.

    Raises:
        SchemaError: the tables cannot be asked for at all.
    """
    names = prefix(schema)
    wanted = [(f"{names}{table}", right) for table, needed in rights.items() for right in needed]
    sql = sa.text(
        "select wanted.relation, wanted.permission "
        "from unnest(cast(:tables as text[]), cast(:rights as text[])) as wanted (relation, permission) "
        "where not has_table_privilege(wanted.relation, wanted.permission)"
    )
    values = {"tables": [table for table, _ in wanted], "rights": [right for _, right in wanted]}
    try:
        rows = connection.execute(sql, values).all()
    except sa.ProgrammingError as error:  # a table was dropped by hand
        raise _no_rights(schema, reason_of(error)) from None
    return [f"{right} on {table}" for table, right in rows]


def reason_of(error: sa.DBAPIError) -> str:
    """Return the first line of what the server said."""
    return (str(error.orig).strip().splitlines() or [type(error.orig).__name__])[0]


def _no_rights(schema: str, reason: str) -> SchemaError:
    return SchemaError(
        f"the database role may not use or create the tables {prefix(schema)}*: {reason}.",
        "Let a role that may create them run `celery -A proj highlander migrate` (`--sql` prints the statements), and "
        f"then: {grants(schema, '<role>')}",
    )
