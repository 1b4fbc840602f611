"""The statements behind singleton runs: locks on keys, who holds them, and who held them last; knows no clock.

The lock itself is a session lock, so it is free as soon as its session is dead. Its *row* is not: it says that a run
held the key, and only the end of that run deletes it. Whoever gets the lock and finds a row of somebody else has found
a debt: that run may still be going on, until the lease of its session has passed.

A row is deleted before its lock is given back, and written before a run may begin, each in one statement; `insert … on
conflict` looks at the latest state of a row, waits for one that is being deleted, and never at a snapshot, which may be
older than the lock. So it also tells whose debt a row is: it "updates" it to what it is, and returns it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from celery_highlander.errors import LockSessionError
from celery_highlander.store import sa, waiting
from celery_highlander.store.connecting import plain_cursor
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
        self._cursor: Any = None  # of whichever driver
        self._held: set[int] = set()
        self._may = False
        self._holder = holder
        self._namespace = namespace
        self._lease = lease

    def _often(self, statement: str, **values: str) -> list[Any]:
        """Do one of the statements that come with every run: prepared, and past SQLAlchemy, which costs as much."""
        if self._cursor is None:
            self._cursor = plain_cursor(self._connection)
            for name in _OFTEN:
                self._cursor.execute(_prepare(name, self._schema))
        self._cursor.execute(_execute(statement), values)
        rows: list[Any] = self._cursor.fetchall()
        return rows

    def _run(self, statement: str, **values: object) -> Any:  # a CursorResult of any row
        sql = self._statements.get(statement)
        if sql is None:
            words = {"first_token": next_token("0"), "next_token": next_token("s.token")}
            sql = self._statements[statement] = sa.text(_SQL[statement].format(prefix=prefix(self._schema), **words))
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
        by_base = {one.base: one for one in tries}
        bases = sorted(by_base)
        wanted = [by_base[base] for base in bases]
        values = {
            "bases": _array(bases),
            "names": _array(one.name for one in wanted),
            "tasks": _array(one.task for one in wanted),
            "ids": _array(one.task_id for one in wanted),
            "holder": self._holder,
            "lease": str(self._lease),
            "namespace": self._namespace,
        }
        if any(one.limit > 1 for one in tries):
            values["limits"] = _array(one.limit for one in wanted)
            values["starts"] = _array(one.start for one in wanted)
            rows = self._often("take_slot", **values, excluded=_array(excluded))
        else:
            rows = self._often("take", **values)
        found: dict[int, Tried] = {}
        for key, holder, lease, task_id in rows:
            one = wanted[bisect_right(bases, key) - 1]
            is_mine = holder == self._holder and key not in self._held  # or it is locked twice
            if is_mine or (holder in paid and self._overtake(key, holder, one)):
                self._held.add(key)
                found[one.number] = Tried(key, taken=True)
            else:  # a debt
                self._run("unlock", keys=[key])
                found[one.number] = Tried(key, False, holder, lease, task_id)
        busy = {one.base: one.number for one in wanted if one.number not in found}
        if busy:
            for base, holder, lease, task_id in self._run("holders", keys=list(busy)):
                found[busy[base]] = Tried(None, False, holder, lease or 0.0, task_id)
        for one in tries:
            if one.fenced and found[one.number].taken:
                found[one.number] = self._begin(one, found[one.number])
        return found

    def _overtake(self, key: int, holder: str, one: Try) -> bool:
        """Make the row of a paid debt ours; not if it is gone by now."""
        words = {"name": one.name, "task": one.task, "task_id": one.task_id, "namespace": self._namespace}
        values = {"key": key, "holder": self._holder, "lease": self._lease, "debtor": holder, **words}
        return bool(self._run("overtake", **values).rowcount)

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
        except sa.DBAPIError as error:
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
        self._held -= wanted
        rows = self._often("free", keys=_array(sorted(wanted)), holder=self._holder)
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
    "overtake": """
update {prefix}run set holder = :holder, lease = :lease, namespace = :namespace, name = :name, task = :task,
    task_id = :task_id, since = clock_timestamp()
where key = :key and holder = :debtor""",
    "holders": """
select wanted.key, r.holder, r.lease, r.task_id
from unnest(cast(:keys as bigint[])) as wanted (key) left join {prefix}run r on r.key = wanted.key""",
    "unlock": "select pg_advisory_unlock(key) from unnest(cast(:keys as bigint[])) as held (key)",
    "mark": """
with ended as (
    select key from {prefix}run where holder = :holder and key <> all(cast(:running as bigint[]))
    order by key for update
)
delete from {prefix}run r using ended where r.key = ended.key""",
    "leave": "delete from {prefix}runner where holder = :holder",
}

# With the types of their parameters, in the order in which they are handed over. They are our own words: the only thing
# that is put into them is the schema, which was checked.
_OFTEN: dict[str, tuple[dict[str, str], str]] = {
    "take": (
        {
            "bases": "bigint[]",
            **dict.fromkeys(("names", "tasks", "ids"), "text[]"),
            "holder": "text",
            "lease": "double precision",
            "namespace": "text",
        },
        """
insert into {prefix}run as r (key, holder, lease, namespace, name, task, task_id)
select base, :holder, :lease, :namespace, name, task, task_id
from unnest(:bases, :names, :tasks, :ids) as wanted (base, name, task, task_id)
where pg_try_advisory_lock(base)
{or_whose}""",
    ),
    # The slots of a key are tried one by one, and none after the first that is free; `case` keeps the order: what this
    # session holds itself must not be locked again.
    "take_slot": (
        {
            "bases": "bigint[]",
            "limits": "integer[]",
            "starts": "integer[]",
            "excluded": "bigint[]",
            **dict.fromkeys(("names", "tasks", "ids"), "text[]"),
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
    from unnest(:bases, :limits, :starts, :names, :tasks, :ids) as wanted (base, most, start, name, task, task_id)
)
insert into {prefix}run as r (key, holder, lease, namespace, name, task, task_id)
select key, :holder, :lease, :namespace, name, task, task_id from tried where key is not null
{or_whose}""",
    ),
    "free": (
        {"keys": "bigint[]", "holder": "text"},
        """
delete from {prefix}run where key = any(:keys) and holder = :holder returning key, pg_advisory_unlock(key)""",
    ),
}

# A row that is there already is not changed, and yet returned, as it is by now: whose debt it is.
_OR_WHOSE = """
on conflict (key) do update set lease = r.lease
returning key, holder, lease, task_id"""
_PARAMETER = re.compile(r"(?<!:):(\w+)")


@cache
def _prepare(statement: str, schema: str) -> str:
    """Return what prepares a statement."""
    types, sql = _OFTEN[statement]
    numbers = {name: number for number, name in enumerate(types, 1)}
    filled = sql.replace("{or_whose}", _OR_WHOSE).replace("{prefix}", prefix(schema))
    body = _PARAMETER.sub(lambda found: f"${numbers[found[1]]}", filled)
    return f"prepare highlander_{statement} ({', '.join(types.values())}) as {body}"


@cache
def _execute(statement: str) -> str:
    arguments = ", ".join(f"%({name})s" for name in _OFTEN[statement][0])
    return f"execute highlander_{statement} ({arguments})"


def _array(values: Iterable[object]) -> str:
    """Return what PostgreSQL reads as an array: one literal costs it less than an expression for each value."""
    quoted = (str(value).replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return "{" + ",".join(f'"{value}"' for value in quoted) + "}"
