"""Who leads what, read from the database by anybody who may read it; takes no lock and needs no worker."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeVar

from celery_highlander.config import BEAT
from celery_highlander.errors import SchemaError, StandbyServerError
from celery_highlander.store import orders, sa
from celery_highlander.store.connecting import (
    ANSWER_TIMEOUT,
    STANDBY_CURE,
    Target,
    open_connection,
    patience,
    unanswered,
    without_password,
)
from celery_highlander.store.migrations import prefix, roll_back, version_of
from celery_highlander.store.terms import beat_group, member_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

Found = TypeVar("Found")

READ_TABLES = ("singleton", "term", "order", "node", "migration")
"""The tables that a role has to be able to read to see who leads what."""

_NONE: Final[Mapping[str, int]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class SingletonStatus:
    """What the database says of one singleton.

    Attributes:
        state: `leading`, `waiting` (holds the lock, waits for its predecessor's lease), `silent` (holds the lock, but
            was not heard of for longer than its lease), `paused` (nobody holds the lock, as an operator wants it),
            `free` (nobody holds the lock).
        node: the holder's uuid; `worker`: its Celery node name; `pid`: its worker's; None where nobody holds the lock.
        since: since when the term has acted (began, while it waits).
        age: how long that is, in seconds, by the server's clock.
        lease: the holder's lease in seconds.
        idle: seconds since its last heartbeat, by the server's clock.
        standbys: nodes whose lock sessions live, beside the holder.
        last_ended_at, last_reason: how the last term that is over ended.
        paused: who has paused it, and why; None where it is not. It may be led for a moment yet.
    """

    name: str
    state: str
    token: int | None
    node: str | None
    worker: str | None
    pid: int | None
    since: datetime | None
    age: float | None
    lease: float | None
    idle: float | None
    standbys: int
    last_ended_at: datetime | None
    last_reason: str | None
    paused: str | None = None

    @property
    def lease_left(self) -> float | None:
        """Seconds that the holder may still act if it is never heard of again; None where nobody holds the lock."""
        if self.lease is None or self.idle is None:
            return None
        return max(0.0, self.lease - self.idle)


# A holder that has not begun its term yet, or has ended it already, still shows in pg_locks: the row is only the
# holder's if its node is the one that the holder's session is named after.
_STATUS = """
select wanted.key, s.token, t.node, t.worker, t.pid, t.elected_at, t.began_at, t.lease,
    t.ended_at is not null as over, a.application_name,
    extract(epoch from clock_timestamp() - s.heartbeat_at)::float8,
    extract(epoch from clock_timestamp() - coalesce(t.elected_at, t.began_at))::float8,
    last.ended_at, last.reason
from unnest(cast(:keys as bigint[])) as wanted (key)
left join {prefix}singleton s on s.key = wanted.key
left join {prefix}term t on t.key = s.key and t.token = s.token
left join pg_locks l on l.locktype = 'advisory' and l.objsubid = 1 and l.granted
    and l.database = (select oid from pg_database where datname = current_database())
    and (l.classid::bigint << 32) | l.objid::bigint = wanted.key
left join pg_stat_activity a on a.pid = l.pid
left join lateral (
    select ended_at, reason from {prefix}term e where e.key = wanted.key and e.ended_at is not null
    order by e.token desc limit 1
) last on true"""


def read(
    target: Target, namespace: str, schema: str, keys: Mapping[str, int], alone: Mapping[str, int] = _NONE
) -> list[SingletonStatus]:
    """Return the status of each singleton, in the order of `keys`.

    Args:
        target: where to connect to.
        namespace: the namespace.
        schema: the schema of the tables.
        keys: the lock keys of the singletons of the workers, by name.
        alone: those of singletons that nodes of their own may lead; shown if one ever did.

    Raises:
        DatabaseUnavailableError: the server does not answer.
        StandbyServerError: a hot standby does not know who holds a lock.
        SchemaError: there are no tables yet, or the role may not read them.
    """
    return ask(
        target,
        f"highlander-status {namespace}",
        schema,
        READ_TABLES,
        lambda connection: read_with(connection, namespace, schema, keys, alone),
    )


def ask(
    target: Target, application_name: str, schema: str, tables: Sequence[str], reading: Callable[[Connection], Found]
) -> Found:
    """Return what `reading` finds over a new connection; `tables` are those that it reads.

    Raises:
        DatabaseUnavailableError: the server does not answer.
        SchemaError: the role may not read the tables.
    """
    connection = open_connection(target, application_name)
    try:
        with patience(connection):
            return reading(connection)
    except sa.DBAPIError as error:
        message = without_password(str(error.orig), target)
        if "permission denied" in message:
            names = ", ".join(f"{prefix(schema)}{table}" for table in tables)
            cure = f"grant select on {names} to <role>;"
            raise SchemaError(f"the role may not read the tables: {message}.", cure) from None
        raise unanswered(error, target) from None
    finally:
        connection.close()


@contextlib.contextmanager
def read_only(connection: Connection) -> Iterator[None]:
    """A transaction for the block that changes nothing, not even the session; on a primary alone.

    Raises:
        StandbyServerError: a hot standby does not know who holds a lock.
    """
    connection.execute(sa.text("begin read only"))
    try:
        connection.execute(sa.text(f"set local statement_timeout = '{ANSWER_TIMEOUT:g}s'"))
        if connection.execute(sa.text("select pg_is_in_recovery()")).scalar():
            raise StandbyServerError(
                "the database URL leads to a hot standby, which does not know who leads.", STANDBY_CURE
            )
        yield
    finally:
        roll_back(connection)


def read_with(
    connection: Connection, namespace: str, schema: str, keys: Mapping[str, int], alone: Mapping[str, int] = _NONE
) -> list[SingletonStatus]:
    """Like `read`, over a connection that is open, in autocommit mode; changes nothing, not even the session."""
    with read_only(connection):
        return _read(connection, namespace, schema, keys, alone)


def _read(
    connection: Connection, namespace: str, schema: str, keys: Mapping[str, int], alone: Mapping[str, int]
) -> list[SingletonStatus]:
    version = version_of(connection, schema)
    if not version:
        raise no_tables(schema)
    pauses = [] if version < orders.ORDER_VERSION else orders.read(connection, namespace, schema)
    activity = connection.execute(
        sa.text("select application_name from pg_stat_activity where datname = current_database()")
    ).all()
    workers, beats = (
        {member.node for (name,) in activity if (member := member_of(name or "", group)) and member.eligible}
        for group in (namespace, beat_group(namespace))
    )
    names = {key: name for name, key in [*keys.items(), *alone.items()]}
    rows = connection.execute(sa.text(_STATUS.format(prefix=prefix(schema))), {"keys": list(names)}).all()
    found = {}
    for key, token, *row in rows:
        if token is not None or names[key] in keys:
            nodes = (workers if names[key] in keys else set()) | (beats if names[key] == BEAT else set())
            found[key] = _with_pause(_status_of(names[key], namespace, nodes, token, *row), pauses)
    return [found[key] for key in names if key in found]


def no_tables(schema: str) -> SchemaError:
    """What to raise where there are no tables yet."""
    return SchemaError(
        f"there are no tables {prefix(schema)}* in this database yet.",
        "Start a worker, or run `celery -A proj highlander migrate`.",
    )


def _with_pause(found: SingletonStatus, standing: Sequence[orders.StandingOrder]) -> SingletonStatus:
    pause = next((order for order in standing if order.pauses(found.name)), None)
    if pause is None:
        return found
    told = f"by {pause.asked_by}" + (f": {pause.reason}" if pause.reason else "")
    return replace(found, paused=told, state="paused" if found.state == "free" else found.state)


def _status_of(
    name: str,
    namespace: str,
    nodes: set[str],
    token: int | None,
    node: str | None,
    worker: str | None,
    pid: int | None,
    elected_at: datetime | None,
    began_at: datetime | None,
    lease: float | None,
    over: bool,
    application_name: str | None,
    idle: float | None,
    age: float | None,
    last_ended_at: datetime | None,
    last_reason: str | None,
) -> SingletonStatus:
    holder = member_of(application_name or "", namespace) or member_of(application_name or "", beat_group(namespace))
    held = holder is not None and holder.node == node and not over
    if not held:
        state = "waiting" if holder is not None and holder.node != node else "free"  # it is about to begin its term
    elif idle is not None and lease is not None and idle > lease:
        state = "silent"
    else:
        state = "leading" if elected_at is not None else "waiting"
    return SingletonStatus(
        name=name,
        state=state,
        token=token,
        node=node if held else None,
        worker=worker if held else None,
        pid=pid if held else None,
        since=(elected_at or began_at) if held else None,
        age=age if held else None,
        lease=lease if held else None,
        idle=max(0.0, idle) if held and idle is not None else None,
        standbys=len(nodes - {node}) if held else len(nodes),
        last_ended_at=last_ended_at,
        last_reason=last_reason,
    )
