"""The lock session's statements: try-lock, term row, heartbeat, stopped mark, NOTIFY; knows no thread and no clock."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery_highlander.election.node import Mark, PollRow
from celery_highlander.election.orders import Kind, Order
from celery_highlander.election.placement import Member
from celery_highlander.election.protocol import BeginFailed, Begun, Predecessor
from celery_highlander.errors import KeyCollisionError, LockSessionError
from celery_highlander.store import sa
from celery_highlander.store.migrations import prefix

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy import Connection, TextClause

    from celery_highlander.store.connecting import Server

KEPT_TERMS = 100
"""How many terms of a singleton stay on record, the present one included.

Older ones may go, and no harm is done whichever goes when. A token follows from the row in `singleton`, and so does
what a term owes its successor; neither is ever deleted. Of the rows in `term` an election needs two, for their stopped
marks: that of the present term, which the next one reads, and that of its predecessor, which the present one awaits
while it waits. Both are among the newest. And should a row be gone all the same, then there is no mark, and a
successor waits for the whole lease.
"""

KEPT_NODES = 86400
"""Seconds for which a node that is gone stays on record."""

_EPOCH_2020 = 1577836800
_LOCK_NOT_AVAILABLE = "55P03"
_BUSY_REST = 0.2
_MEMBER = re.compile(r"highlander (?P<group>\S+) (?P<node>\S+) (?P<eligible>[px])(?P<priority>-?\d{1,3})")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who holds a term: `node` is the uuid of this start; `worker` (Celery's node name) and `pid` are for display."""

    node: str
    worker: str
    pid: int


def channel(namespace: str) -> str:
    """Return the NOTIFY channel of a namespace: an identifier, whatever the namespace has in it."""
    return f"highlander_{hashlib.blake2b(namespace.encode(), digest_size=8).hexdigest()}"


def beat_group(namespace: str) -> str:
    """Return the group of the beats that are nodes of their own: they share nothing with the workers but the beat."""
    return f"{namespace}+beat"


def application_name(group: str, node: str, priority: int, *, eligible: bool) -> str:
    """Return the session's name in `pg_stat_activity`, from which nodes count each other; 63 bytes at most."""
    return f"highlander {group} {node} {'p' if eligible else 'x'}{priority}"


def member_of(name: str, group: str) -> Member | None:
    """Return the node that an `application_name` tells of, if it is one of this group."""
    parts = _MEMBER.fullmatch(name)  # anybody may name a session as they like
    if parts is None or parts["group"] != group:
        return None
    return Member(parts["node"], int(parts["priority"]), parts["eligible"] == "p")


def collisions(
    connection: Connection, schema: str, namespace: str, keys: Mapping[str, int]
) -> list[tuple[str, str, str]]:
    """Return which of the singletons `keys` have the lock key of another one: name, that one's namespace and name."""
    names = {key: name for name, key in keys.items()}
    found = connection.execute(sa.text(_NAMES.format(prefix=prefix(schema))), {"keys": list(names)})
    return [(names[key], theirs, other) for key, theirs, other in found if (theirs, other) != (namespace, names[key])]


def is_lock_timeout(error: sa.DBAPIError) -> bool:
    """Return whether a statement failed because it had to wait for a row for too long."""
    return _LOCK_NOT_AVAILABLE in (getattr(error.orig, "sqlstate", None), getattr(error.orig, "pgcode", None))


def next_token(last: str) -> str:
    """Return the SQL of a token above `last`, which is SQL, too; it has the parameter `timeline`.

    The token leads with the timeline, so that it rises over a failover that lost rows; below it stands the server's
    time in seconds, which is only a floor (it does not matter when that clock is wrong): it makes tokens rise even
    where the tables were dropped, or restored from a snapshot on the same timeline.
    """
    now = f"extract(epoch from clock_timestamp())::bigint - {_EPOCH_2020}"
    return f"greatest({last} + 1, (cast(:timeline as bigint) << 32) + greatest(0, least({now}, 4294967295)))"


class Terms:
    """The statements, for one schema, one namespace and one node.

    Each method sends one statement, some a second one beside it, and may raise whatever the driver raises; after any
    error the session has to be closed, since nobody knows what the server did.
    """

    def __init__(
        self,
        connection: Connection,
        server: Server,
        keys: Mapping[str, int],
        namespace: str,
        schema: str,
        lease: float,
        group: str = "",
    ) -> None:
        self._connection = connection
        self._server = server
        self._keys = keys
        self._names = {key: name for name, key in keys.items()}
        self._namespace = namespace
        self._schema = schema
        self._group = group or namespace
        self._lease = lease
        words = {"prefix": prefix(schema), "next_token": next_token("coalesce(k.token, 0)")}
        self._statements = {name: sa.text(sql.format(**words)) for name, sql in _SQL.items()}
        self._recorded: set[tuple[int, int]] = set()
        self._may_forget = False

    def _run(self, statement: str, **values: object) -> Any:  # a CursorResult of any row
        sql: TextClause = self._statements[statement]
        return self._connection.execute(sql, values)

    def check_collisions(self) -> None:
        """Raise `KeyCollisionError` if one of our keys belongs to another name."""
        for ours, namespace, name in collisions(self._connection, self._schema, self._namespace, self._keys):
            key = self._keys[ours]
            raise KeyCollisionError(
                f"the singleton {ours!r} has the lock key {key} of {name!r} in the namespace {namespace!r}.",
                "Rename one of them.",
            )

    def listen(self) -> None:
        """Subscribe to the namespace's notifications."""
        self._connection.execute(sa.text(f'listen "{channel(self._namespace)}"'))

    def rehearse(self, who: Identity) -> None:
        """Run the statements of a takeover for no singleton at all: each one's first run takes milliseconds longer.

        That is SQLAlchemy compiling it, and a new backend reading the catalog.
        """
        self._begin([], who, 0.0)
        self.leave_marks(())
        self._run("heartbeat", keys=[], tokens=[], acting=[], lease=self._lease)
        self._run("elected", keys=[], tokens=[])
        self._run("stopped", keys=[], tokens=[])
        self._run("unlock", keys=[])
        # Roles from before terms were deleted lack that right; for them the history just grows.
        self._may_forget = bool(self._run("may_forget").scalar())
        self._forget([])

    def poll(self, names: tuple[str, ...], trying: frozenset[str]) -> tuple[PollRow, ...]:
        """Look at the rows of `names`, and try for the locks of `trying`."""
        if not names:
            return ()
        keys = [self._keys[name] for name in names]
        rows = self._run("poll", keys=keys, trying=[name in trying for name in names])
        return tuple(PollRow(self._names[key], granted, token, heartbeats) for key, granted, token, heartbeats in rows)

    def stopped(self, awaited: Mapping[str, int]) -> dict[str, int]:
        """Return those of the awaited terms (name to token) that left their stopped mark."""
        if not awaited:
            return {}
        keys = [self._keys[name] for name in awaited]
        return {
            self._names[key]: token for key, token in self._run("stopped", keys=keys, tokens=list(awaited.values()))
        }

    def members(self) -> tuple[Member, ...]:
        """Return the nodes of the group whose lock sessions live."""
        found = (member_of(name, self._group) for (name,) in self._run("members"))
        return tuple(sorted((member for member in found if member), key=lambda member: member.node))

    def enrol(self, who: Identity, release: str) -> None:
        """Put this node on record, and delete what is of nodes that have been gone for a day."""
        values = {"node": who.node, "worker": who.worker, "pid": who.pid}
        self._run("enrol", namespace=self._namespace, release=release, **values)
        if self._run("may_forget_nodes").scalar():
            self._run("forget_nodes", kept=f"{KEPT_NODES} s")
            self._run("forget_orders")

    def orders(self) -> tuple[Order, ...]:
        """Return what operators ask of the nodes of the namespace; kinds that a later release knows are left out."""
        rows = self._run("orders", namespace=self._namespace)
        known = {kind.value for kind in Kind}
        return tuple(
            Order(Kind(kind), name, reason, patient, token, frozenset(nodes or ()))
            for kind, name, reason, patient, token, nodes in rows
            if kind in known
        )

    def begin(self, names: Iterable[str], who: Identity, sent_at: float) -> dict[str, Begun | BeginFailed]:
        """Record a term for each name whose lock this session holds.

        A singleton whose row is locked by a fenced transaction fails alone.
        """
        keys = [self._keys[name] for name in names]
        try:
            return self._begin(keys, who, sent_at)
        except sa.DBAPIError as error:
            if not is_lock_timeout(error):
                raise
        if len(keys) == 1:
            return {self._names[keys[0]]: BeginFailed(_BUSY_REST)}
        outcomes: dict[str, Begun | BeginFailed] = {}
        for key in keys:
            outcomes |= self.begin([self._names[key]], who, sent_at)
        return outcomes

    def _begin(self, keys: list[int], who: Identity, sent_at: float) -> dict[str, Begun | BeginFailed]:
        rows = self._run(
            "begin",
            keys=keys,
            names=[self._names[key] for key in keys],
            namespace=self._namespace,
            timeline=self._server.timeline,
            instance=self._server.instance,
            lease=self._lease,
            node=who.node,
            worker=who.worker,
            pid=who.pid,
        ).all()
        if len(rows) != len(keys):
            raise LockSessionError(f"{len(rows)} of {len(keys)} terms were recorded")
        outcomes: dict[str, Begun | BeginFailed] = {}
        for key, token, before, heartbeats, owed, same_instance, stopped in rows:
            predecessor = None if before is None else Predecessor(before, heartbeats, owed, stopped, same_instance)
            outcomes[self._names[key]] = Begun(token, sent_at, predecessor)
        return outcomes

    def heartbeat(self, terms: Mapping[str, int], acting: frozenset[str]) -> None:
        """Renew the rows of `terms`, each by its token.

        Raises:
            LockSessionError: anything else than every row renewed, by the backend that holds the locks, on a primary.
        """
        if terms:
            keys = [self._keys[name] for name in terms]
            tokens = list(terms.values())
            values = {
                "keys": keys,
                "tokens": tokens,
                "acting": [name in acting for name in terms],
                "lease": self._lease,
            }
            renewed, pid, recovering = self._run("heartbeat", **values).one()
        else:
            renewed, pid, recovering = self._run("alive").one()
        if recovering:
            raise LockSessionError("the server is not the primary any more")
        if pid != self._server.backend_pid:
            raise LockSessionError(f"backend {self._server.backend_pid} holds the locks, but {pid} answered")
        if renewed != len(terms):
            raise LockSessionError(f"{len(terms) - renewed} of {len(terms)} terms were replaced by later ones")
        self._record_elected({(self._keys[name], terms[name]) for name in acting})

    def _record_elected(self, acting: set[tuple[int, int]]) -> None:
        new = acting - self._recorded
        if new:
            self._run("elected", keys=[key for key, _ in new], tokens=[token for _, token in new])
            self._forget([key for key, _ in new])
        self._recorded = acting

    def _forget(self, keys: list[int]) -> None:
        """Delete the terms beyond `KEPT_TERMS`: once in each term, and when its work acts already."""
        if self._may_forget:
            self._run("forget", keys=keys, kept=KEPT_TERMS)

    def unlock(self, names: Iterable[str]) -> None:
        """Give locks back under which nothing was begun."""
        if not all(unlocked for (unlocked,) in self._run("unlock", keys=[self._keys[name] for name in names])):
            raise LockSessionError("a lock that should have been held was not")

    def release(self, name: str, mark: Mark | None) -> None:
        """Leave the stopped mark, then unlock and notify: the mark is committed before anybody can get the lock."""
        if mark is not None:
            self.leave_marks((mark,))
        if not self._run("release", key=self._keys[name], channel=channel(self._namespace), name=name).one()[0]:
            raise LockSessionError(f"the lock of {name!r} should have been held, and was not")

    def leave_marks(self, marks: tuple[Mark, ...], *, notify: bool = False) -> None:
        """Leave the stopped mark of each term, by its exact token."""
        self._run(
            "mark",
            keys=[self._keys[mark.name] for mark in marks],
            tokens=[mark.token for mark in marks],
            reasons=[mark.reason for mark in marks],
        )
        if notify:
            self._run("notify", channel=channel(self._namespace))

    def rename(self, name: str) -> None:
        """Change how this session shows in `pg_stat_activity`, and so to the other nodes."""
        self._run("rename", name=name)


_NAMES = "select key, namespace, name from {prefix}singleton where key = any(cast(:keys as bigint[])) order by name"

_SQL = {
    "poll": """
select wanted.key, case when wanted.trying then pg_try_advisory_lock(wanted.key) else false end,
    s.token, coalesce(s.heartbeats, 0)
from unnest(cast(:keys as bigint[]), cast(:trying as boolean[])) as wanted (key, trying)
left join {prefix}singleton s on s.key = wanted.key""",
    "stopped": """
select t.key, t.token
from unnest(cast(:keys as bigint[]), cast(:tokens as bigint[])) as awaited (key, token)
join {prefix}term t on t.key = awaited.key and t.token = awaited.token
where t.stopped_at is not null""",
    "members": """
select application_name from pg_stat_activity
where datname = current_database() and application_name like 'highlander %'""",
    "enrol": """
insert into {prefix}node (node, namespace, worker, pid, release)
values (:node, :namespace, :worker, :pid, :release)
on conflict (node) do update set worker = excluded.worker, seen_at = clock_timestamp()""",
    "may_forget_nodes": """
select has_table_privilege('{prefix}node', 'delete') and has_table_privilege('{prefix}order', 'delete')""",
    "forget_nodes": """
delete from {prefix}node n where n.seen_at < clock_timestamp() - cast(:kept as interval) and not exists (
    select from pg_stat_activity a where a.datname = current_database() and a.application_name like 'highlander %'
        and split_part(a.application_name, ' ', 3) = n.node
)""",
    "forget_orders": """
delete from {prefix}order o where o.until < clock_timestamp()
    or (o.kind = 'drain' and not exists (select from {prefix}node n where n.node = o.node))""",
    "orders": """
select o.kind, o.name,
    concat_ws(' ', o.kind, nullif(o.node, ''), 'asked for by', concat_ws(': ', o.asked_by, nullif(o.reason, ''))),
    o.patient, o.token,
    case o.kind when 'drain' then array[o.node] when 'prefer' then array(
        select n.node from {prefix}node n where n.namespace = o.namespace and n.worker = o.node
    ) end
from {prefix}order o
where o.namespace = :namespace and (o.until is null or o.until > clock_timestamp())
order by o.kind, o.name, o.node""",
    "begin": """
with before as materialized (
    select s.key, s.token, s.heartbeats, s.owed, s.instance = :instance as same_instance
    from {prefix}singleton s where s.key = any(cast(:keys as bigint[])) order by s.key for update
), known as materialized (
    select b.*, t.stopped_at is not null as stopped
    from before b left join {prefix}term t on t.key = b.key and t.token = b.token
), begun as (
    insert into {prefix}singleton as s (key, namespace, name, token, heartbeats, owed, instance)
    select wanted.key, :namespace, wanted.name,
        {next_token},
        0,
        case when k.stopped and k.same_instance then :lease else greatest(:lease, coalesce(k.owed, 0)) end,
        :instance
    from unnest(cast(:keys as bigint[]), cast(:names as text[])) as wanted (key, name)
    left join known k on k.key = wanted.key
    on conflict (key) do update set token = excluded.token, heartbeats = 0, heartbeat_at = clock_timestamp(),
        owed = excluded.owed, instance = excluded.instance
        where s.token < excluded.token and s.namespace = excluded.namespace and s.name = excluded.name
    returning s.key, s.token
), recorded as (
    insert into {prefix}term (key, token, node, worker, pid, lease)
    select key, token, :node, :worker, :pid, :lease from begun
)
select begun.key, begun.token, k.token, k.heartbeats, k.owed, k.same_instance, k.stopped
from begun left join known k on k.key = begun.key""",
    "heartbeat": """
with renewed as (
    update {prefix}singleton s
    set heartbeats = s.heartbeats + 1, heartbeat_at = clock_timestamp(),
        owed = case when held.acting then :lease else s.owed end
    from unnest(cast(:keys as bigint[]), cast(:tokens as bigint[]), cast(:acting as boolean[]))
        as held (key, token, acting)
    where s.key = held.key and s.token = held.token
    returning s.key
)
select count(*), pg_backend_pid(), pg_is_in_recovery() from renewed""",
    "alive": "select 0, pg_backend_pid(), pg_is_in_recovery()",
    "elected": """
update {prefix}term t set elected_at = clock_timestamp()
from unnest(cast(:keys as bigint[]), cast(:tokens as bigint[])) as acting (key, token)
where t.key = acting.key and t.token = acting.token and t.elected_at is null""",
    "may_forget": "select has_table_privilege('{prefix}term', 'delete')",
    # A row that somebody has locked is left for the next time: nothing here may wait.
    "forget": """
with oldest as (
    select wanted.key, (
        select t.token from {prefix}term t where t.key = wanted.key order by t.token desc offset :kept - 1 limit 1
    ) as token
    from unnest(cast(:keys as bigint[])) as wanted (key)
), old as (
    select t.key, t.token from {prefix}term t join oldest on t.key = oldest.key and t.token < oldest.token
    for update of t skip locked
)
delete from {prefix}term t using old where t.key = old.key and t.token = old.token""",
    "unlock": "select pg_advisory_unlock(held.key) from unnest(cast(:keys as bigint[])) as held (key)",
    "release": "select pg_advisory_unlock(:key), pg_notify(:channel, :name)",
    "mark": """
update {prefix}term t set stopped_at = clock_timestamp(), ended_at = clock_timestamp(), reason = ended.reason
from unnest(cast(:keys as bigint[]), cast(:tokens as bigint[]), cast(:reasons as text[])) as ended (key, token, reason)
where t.key = ended.key and t.token = ended.token and t.stopped_at is null""",
    "notify": "select pg_notify(:channel, '')",
    "rename": "select set_config('application_name', :name, false)",
}
