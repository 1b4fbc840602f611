"""The statements behind singleton runs: locks on keys, who holds them, and who held them last; knows no clock.

The lock itself is a session lock, so it is free as soon as its session is dead. Its *row* is not: it says that a run
held the key, and only the end of that run deletes it. Whoever gets the lock and finds a row of somebody else has found
a debt: that run may still be going on, until the lease of its session has passed.

A row is deleted before its lock is given back, and written before a run may begin, each in one statement; `insert … on
conflict` looks at the latest state of a row, waits for one that is being deleted, and never at a snapshot. Whose debt a
row is, is read once its lock is got, by another statement: what the first one saw may be older than the lock.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from celery_highlander.errors import LockSessionError
from celery_highlander.store import waiting
from celery_highlander.store.migrations import RUN_RIGHTS, ensure_rights, prefix
from celery_highlander.store.terms import is_lock_timeout, next_token

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from sqlalchemy import Connection, TextClause

    from celery_highlander.store.connecting import Server
    from celery_highlander.store.terms import Identity

SETTLED = -1
"""The key of the settled mark: while its row is there, the table has lost nothing. No run has this key."""

FORGET_AFTER = "1 day"
"""After this long without a heartbeat a lock session and its rows are forgotten."""


@dataclass(frozen=True, slots=True)
class Try:
    """One try for a key.

    Attributes:
        number: tells the tries of one statement apart.
        base: the key of the first slot.
        limit: how many slots there are; their keys follow `base`.
        start: the slot that is tried first.
        name: the key's text; `task` and `task_id` say what runs, for display.
        fenced: whether a token is wanted.
    """

    number: int
    base: int
    limit: int
    start: int
    name: str
    task: str
    task_id: str
    fenced: bool


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of a try.

    Attributes:
        key: of the slot whose lock was got, also where it was given back because of a debt; None if all are held.
        taken: the key is held now.
        holder: who held the key, as far as its row tells; where there is a debt, it is that one's for certain.
        lease: of that holder.
        task_id: of that holder's run.
        token: the run's fencing token.
    """

    key: int | None
    taken: bool
    holder: str | None = None
    lease: float = 0.0
    task_id: str | None = None
    token: int | None = None


@dataclass(frozen=True, slots=True)
class Registration:
    """What a session finds when it begins: whether the table of runs is complete, and the longest lease in use."""

    settled: bool
    longest_lease: float


class RunLocks:
    """The statements, for one lock session. After any error the session has to be closed."""

    def __init__(
        self, connection: Connection, server: Server, holder: str, namespace: str, schema: str, lease: float
    ) -> None:
        self._connection = connection
        self._server = server
        self._schema = schema
        self._statements: dict[str, TextClause] = {}
        self._prepared: set[str] = set()
        self._may = False
        self._holder = holder
        self._namespace = namespace
        self._lease = lease

    def _often(self, statement: str, values: Mapping[str, object]) -> list[Any]:
        """Do one of the statements that come with every run: prepared, and past SQLAlchemy, which costs as much."""
        driver: Any = self._connection.connection.driver_connection
        with driver.cursor() as cursor:
            if hasattr(driver, "pgconn"):  # psycopg 3 prepares by itself what comes often
                cursor.execute(_named(statement, self._schema), values)
            else:
                if statement not in self._prepared:
                    self._prepared.add(statement)
                    cursor.execute(_prepare(statement, self._schema))
                cursor.execute(f"execute highlander_{statement} ({_arguments(statement)})", values)
            rows: list[Any] = cursor.fetchall()
        return rows

    def _run(self, statement: str, **values: object) -> Any:  # a CursorResult of any row
        sql = self._statements.get(statement)
        if sql is None:
            words = {"first_token": next_token("0"), "next_token": next_token("s.token")}
            sql = self._statements[statement] = text(_SQL[statement].format(prefix=prefix(self._schema), **words))
        return self._connection.execute(sql, values)

    def register(self, who: Identity) -> Registration:
        """Record this session as one that runs rely on.

        Raises:
            SchemaError: the role may not use the tables.
        """
        self._ensure_rights()
        self._run("register", holder=self._holder, node=who.node, worker=who.worker, pid=who.pid, lease=self._lease)
        settled, longest = self._run("settled", mark=SETTLED).one()
        self._run("forget", age=FORGET_AFTER, mark=SETTLED)
        return Registration(settled, max(self._lease, longest or 0.0))

    def _ensure_rights(self) -> None:
        """Look once, before a statement fails: that would cost the session."""
        if not self._may:
            ensure_rights(self._connection, self._schema, RUN_RIGHTS)
            self._may = True

    def settle(self) -> None:
        """Leave the settled mark: every run that the table may have lost has ended."""
        self._run("settle", mark=SETTLED)

    def beat(self) -> None:
        """Renew this session.

        Raises:
            LockSessionError: its row is gone.
        """
        if self._run("beat", holder=self._holder).rowcount != 1:
            raise LockSessionError("the row of this node's lock session is gone")

    def runners(self) -> dict[str, tuple[int, float]]:
        """Return the heartbeats and the lease of each session that runs rely on."""
        return {holder: (beats, lease) for holder, beats, lease in self._run("runners")}

    def take(self, tries: Sequence[Try], excluded: Collection[int], paid: Collection[str]) -> dict[int, Tried]:
        """Try each, for any slot that is free.

        Args:
            tries: one for a base at most: this session's own locks stack.
            excluded: keys that this session holds already.
            paid: the holders whose runs have ended for certain, though nobody has said so.
        """
        values = {
            "numbers": [one.number for one in tries],
            "bases": [one.base for one in tries],
            "names": [one.name for one in tries],
            "tasks": [one.task for one in tries],
            "ids": [one.task_id for one in tries],
            "paid": list(paid),
            "holder": self._holder,
            "lease": self._lease,
            "namespace": self._namespace,
        }
        if any(one.limit > 1 for one in tries):
            values["limits"] = [one.limit for one in tries]
            values["starts"] = [one.start for one in tries]
            values["excluded"] = list(excluded)
            rows = self._often("take_slot", values)
        else:
            rows = self._often("take", values)
        found = {
            number: Tried(key, taken, holder, lease or 0.0, task_id)
            for number, key, taken, holder, lease, task_id in rows
        }
        debts = {tried.key: number for number, tried in found.items() if tried.key is not None and not tried.taken}
        if debts:
            for key, holder, lease, task_id, _ in self._run("debts", keys=sorted(debts)):
                found[debts[key]] = Tried(key, False, holder, lease or 0.0, task_id)
        for one in tries:
            if one.fenced and found[one.number].taken:
                found[one.number] = self._begin(one, found[one.number])
        return found

    def _begin(self, one: Try, tried: Tried) -> Tried:
        """Give a run its token; it is not taken as long as a fenced transaction of the last one is open."""
        name = f"task {one.name}" if one.limit == 1 else f"task {one.name} #{(tried.key or 0) - one.base}"
        try:
            token = self._run(
                "token",
                key=tried.key,
                namespace=self._namespace,
                name=name,
                timeline=self._server.timeline,
                instance=self._server.instance,
            ).scalar_one()
        except DBAPIError as error:
            if not is_lock_timeout(error):
                raise
            self.free([tried.key])  # type: ignore[list-item]  # it was taken
            return Tried(None, taken=False, holder=self._holder)
        return Tried(tried.key, taken=True, token=token)

    def free(self, keys: Iterable[int]) -> None:
        """Give keys back whose runs have ended.

        Raises:
            LockSessionError: one of the locks was not held.
        """
        wanted = set(keys)
        rows = self._often("free", {"keys": sorted(wanted), "holder": self._holder})
        rest = wanted - {key for key, _ in rows}  # without a row: somebody has cleared the table
        unlocked = [done for _, done in rows]
        if rest:
            unlocked += [done for (done,) in self._run("unlock", keys=sorted(rest))]
        if not all(unlocked):
            raise LockSessionError("a lock that should have been held was not")

    def claim(self, message: waiting.Waiting) -> waiting.Row | None:
        """Record a message that is about to be sent; return what waits already.

        Raises:
            SchemaError: the role may not use the tables.
        """
        self._ensure_rights()
        return waiting.claim(self._connection, self._schema, message)

    def forget(self, task_ids: Iterable[str]) -> None:
        """Free the rows of messages that wait no more.

        Raises:
            SchemaError: the role may not use the tables.
        """
        self._ensure_rights()
        waiting.forget(self._connection, self._schema, task_ids)

    def mark(self, ended: Mapping[str, Collection[int]]) -> None:
        """Note that the runs of lost sessions have ended, but for those that still hold the given keys."""
        for holder, running in ended.items():
            self._run("mark", holder=holder, running=sorted(running))
            if not running:
                self._run("leave", holder=holder)


_SQL = {
    "register": """
insert into {prefix}runner as r (holder, node, worker, pid, lease) values (:holder, :node, :worker, :pid, :lease)
on conflict (holder) do update set heartbeats = r.heartbeats + 1, heartbeat_at = clock_timestamp()""",
    "settled": """
select exists (select from {prefix}run where key = :mark), (select max(lease) from {prefix}runner)""",
    "settle": """
insert into {prefix}run (key, holder, lease, namespace, name, task, task_id) values (:mark, '', 0, '', '', '', '')
on conflict do nothing""",
    # By the server's clock, which may be wrong: a day is far from any lease.
    "forget": """
with old as (
    delete from {prefix}runner where heartbeat_at < clock_timestamp() - cast(:age as interval) returning holder
)
delete from {prefix}run r where key <> :mark and (
    exists (select from old where old.holder = r.holder)
    or since < clock_timestamp() - cast(:age as interval)
    and not exists (select from {prefix}runner known where known.holder = r.holder)
)""",
    "beat": """
update {prefix}runner set heartbeats = heartbeats + 1, heartbeat_at = clock_timestamp() where holder = :holder""",
    "runners": "select holder, heartbeats, lease from {prefix}runner",
    "token": """
insert into {prefix}singleton as s (key, namespace, name, token, heartbeats, owed, instance)
values (:key, :namespace, :name, {first_token}, 0, 0, :instance)
on conflict (key) do update set token = {next_token}, instance = excluded.instance
returning s.token""",
    "debts": """
select owed.key, r.holder, r.lease, r.task_id, pg_advisory_unlock(owed.key)
from unnest(cast(:keys as bigint[])) as owed (key) left join {prefix}run r on r.key = owed.key""",
    "unlock": "select pg_advisory_unlock(key) from unnest(cast(:keys as bigint[])) as held (key)",
    "mark": """
with ended as (
    select key from {prefix}run where holder = :holder and key <> all(cast(:running as bigint[]))
    order by key for update
)
delete from {prefix}run r using ended where r.key = ended.key""",
    "leave": "delete from {prefix}runner where holder = :holder",
}

_TAKEN = """
), taken as (
    insert into {prefix}run as r (key, holder, lease, namespace, name, task, task_id)
    select key, :holder, :lease, :namespace, name, task, task_id from tried where key is not null order by key
    on conflict (key) do update set holder = excluded.holder, lease = excluded.lease, namespace = excluded.namespace,
        name = excluded.name, task = excluded.task, task_id = excluded.task_id, since = clock_timestamp()
        where r.holder = any(:paid)
    returning r.key
)
select tried.number, tried.key, taken.key is not null, r.holder, r.lease, r.task_id
from tried left join taken on taken.key = tried.key
left join {prefix}run r on r.key = coalesce(tried.key, tried.base)"""

# With the types of their parameters, in the order in which they are handed over. They are our own words: the only thing
# that is put into them is the schema, which was checked.
_OFTEN: dict[str, tuple[dict[str, str], str]] = {
    "take": (
        {
            "numbers": "bigint[]",
            "bases": "bigint[]",
            **dict.fromkeys(("names", "tasks", "ids", "paid"), "text[]"),
            "holder": "text",
            "lease": "double precision",
            "namespace": "text",
        },
        """
with tried as materialized (
    select wanted.*, case when pg_try_advisory_lock(wanted.base) then wanted.base end as key
    from unnest(:numbers, :bases, :names, :tasks, :ids) as wanted (number, base, name, task, task_id)
{taken}""",
    ),
    # The slots of a key are tried one by one, and none after the first that is free; `case` keeps the order: what this
    # session holds itself must not be locked again.
    "take_slot": (
        {
            "numbers": "bigint[]",
            "bases": "bigint[]",
            "limits": "integer[]",
            "starts": "integer[]",
            "excluded": "bigint[]",
            **dict.fromkeys(("names", "tasks", "ids", "paid"), "text[]"),
            "holder": "text",
            "lease": "double precision",
            "namespace": "text",
        },
        """
with tried as materialized (
    select wanted.*, (
        select wanted.base + mod(wanted.start + slot, wanted.most) from generate_series(0, wanted.most - 1) as slot
        where case when wanted.base + mod(wanted.start + slot, wanted.most) = any(:excluded) then false
            else pg_try_advisory_lock(wanted.base + mod(wanted.start + slot, wanted.most)) end
        limit 1
    ) as key
    from unnest(:numbers, :bases, :limits, :starts, :names, :tasks, :ids)
        as wanted (number, base, most, start, name, task, task_id)
{taken}""",
    ),
    "free": (
        {"keys": "bigint[]", "holder": "text"},
        """
delete from {prefix}run where key = any(:keys) and holder = :holder returning key, pg_advisory_unlock(key)""",
    ),
}
_PARAMETER = re.compile(r"(?<!:):(\w+)")


def _filled(sql: str, schema: str) -> str:
    return sql.replace("{taken}", _TAKEN).replace("{prefix}", prefix(schema))


@cache
def _named(statement: str, schema: str) -> str:
    """Return a statement with its parameters as a driver takes them, by name."""
    types, sql = _OFTEN[statement]
    return _PARAMETER.sub(lambda found: f"%({found[1]})s::{types[found[1]]}", _filled(sql, schema))


@cache
def _prepare(statement: str, schema: str) -> str:
    """Return what prepares a statement."""
    types, sql = _OFTEN[statement]
    numbers = {name: number for number, name in enumerate(types, 1)}
    body = _PARAMETER.sub(lambda found: f"${numbers[found[1]]}", _filled(sql, schema))
    return f"prepare highlander_{statement} ({', '.join(types.values())}) as {body}"


@cache
def _arguments(statement: str) -> str:
    return ", ".join(f"%({name})s" for name in _OFTEN[statement][0])
