"""Who leads what, read from the database by anybody who may read it; takes no lock and needs no worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from celery_highlander.errors import DatabaseUnavailableError, SchemaError
from celery_highlander.store.connecting import Target, open_connection, without_password
from celery_highlander.store.migrations import prefix, version_of
from celery_highlander.store.terms import member_of

if TYPE_CHECKING:
    from datetime import datetime
    from collections.abc import Mapping
    from sqlalchemy import Connection


@dataclass(frozen=True, slots=True)
class SingletonStatus:
    """What the database says of one singleton.

    Attributes:
        state: `leading`, `waiting` (holds the lock, waits for its predecessor's lease), `free` (nobody holds the lock).
        node: the holder's uuid; `worker`: its Celery node name; `pid`: its worker's; None where nobody holds the lock.
        since: since when the term has acted (began, while it waits).
        lease: the holder's lease in seconds.
        idle: seconds since the lock session was heard of last.
        standbys: nodes whose lock sessions live, beside the holder.
        last_ended_at, last_reason: how the last term that is over ended.
    """

    name: str
    state: str
    token: int | None
    node: str | None
    worker: str | None
    pid: int | None
    since: datetime | None
    lease: float | None
    idle: float | None
    standbys: int
    last_ended_at: datetime | None
    last_reason: str | None

    @property
    def lease_left(self) -> float | None:
        """Seconds that the holder may still act if it is never heard of again; None where nobody holds the lock."""
        if self.lease is None or self.idle is None:
            return None
        return max(0.0, self.lease - self.idle)


_STATUS = """
select wanted.key, s.token, t.node, t.worker, t.pid, t.elected_at, t.began_at, t.lease, a.pid,
    extract(epoch from clock_timestamp() - greatest(a.state_change, a.query_start))::float8,
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


def read(target: Target, namespace: str, schema: str, keys: Mapping[str, int]) -> list[SingletonStatus]:
    """Return the status of each singleton, in the order of `keys`.

    Raises:
        DatabaseUnavailableError: the server does not answer.
        SchemaError: there are no tables yet, or the role may not read them.
    """
    connection = open_connection(target, f"highlander-status {namespace}")
    try:
        return read_with(connection, namespace, schema, keys)
    except DBAPIError as error:
        message = without_password(str(error.orig), target)
        if "permission denied" in message:
            raise SchemaError(f"the role may not read the tables: {message}") from None
        raise DatabaseUnavailableError(f"the database did not answer: {message}") from None
    finally:
        connection.close()


def read_with(connection: Connection, namespace: str, schema: str, keys: Mapping[str, int]) -> list[SingletonStatus]:
    """Like `read`, over a connection that is open."""
    connection.execute(text("set statement_timeout = '5s'"))
    if not version_of(connection, schema):
        raise SchemaError(
            f"there are no tables {prefix(schema)}* in this database yet.",
            "Start a worker, or run `celery -A proj highlander migrate`.",
        )
    activity = connection.execute(
        text("select application_name from pg_stat_activity where datname = current_database()")
    ).scalars()
    nodes = {member.node for name in activity if (member := member_of(name or "", namespace)) and member.eligible}
    names = {key: name for name, key in keys.items()}
    rows = connection.execute(text(_STATUS.format(prefix=prefix(schema))), {"keys": list(names)}).all()
    found = {}
    for key, token, node, worker, pid, elected_at, began_at, lease, backend, idle, ended_at, reason in rows:
        held = backend is not None
        state = ("leading" if elected_at else "waiting") if held else "free"
        found[key] = SingletonStatus(
            name=names[key],
            state=state,
            token=token,
            node=node if held else None,
            worker=worker if held else None,
            pid=pid if held else None,
            since=(elected_at or began_at) if held else None,
            lease=lease if held else None,
            idle=max(0.0, idle) if held and idle is not None else None,
            standbys=len(nodes - {node}) if held else len(nodes),
            last_ended_at=ended_at,
            last_reason=reason,
        )
    return [found[key] for key in keys.values()]
