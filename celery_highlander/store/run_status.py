"""Which runs of singleton tasks hold a key, and which messages wait for one; takes no lock that a run might want."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from celery_highlander.errors import SchemaError
from celery_highlander.store import sa
from celery_highlander.store.migrations import RUN_VERSION, prefix, roll_back, version_of
from celery_highlander.store.runs import SETTLED
from celery_highlander.store.status import ask, read_only

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection

    from celery_highlander.store.connecting import Target

TABLES = ("runner", "run", "waiting")


@dataclass(frozen=True, slots=True)
class HeldKey:
    """A key that a run holds, or held when its lock session died.

    Attributes:
        name: the key's text; `key`: the lock key.
        state: `held`, or `owed`: its lock session is dead, and others wait until its lease has passed.
        worker, pid: who runs it; None where nobody knows any more.
        age: seconds since `since`, by the server's clock.
        lease: in seconds: for how long a run may go on without its lock session.
        holder: what its lock session is called; `heartbeats`: how often that was renewed.
    """

    name: str
    task: str
    task_id: str
    state: str
    worker: str | None
    pid: int | None
    since: datetime
    age: float
    lease: float
    key: int
    holder: str
    heartbeats: int | None


@dataclass(frozen=True, slots=True)
class WaitingMessage:
    """A message that waits for a key.

    Attributes:
        age: seconds since it was sent, by the server's clock.
        expires_in: seconds until it expires, 0 if it has; None if it does not.
        missed: in how many looks of the sweep in a row it was nowhere.
    """

    name: str
    task: str
    task_id: str
    queue: str
    sent_at: datetime
    age: float
    expires_in: float | None
    missed: int


@dataclass(frozen=True, slots=True)
class RunStatus:
    """What the tables say of a namespace's singleton tasks, each list sorted by key."""

    runs: list[HeldKey]
    waiting: list[WaitingMessage]

    def matching(self, word: str) -> RunStatus:
        """Return what is of the key, or of the task id, `word`."""
        return RunStatus(
            [run for run in self.runs if word in (run.name, run.task_id)],
            [message for message in self.waiting if word in (message.name, message.task_id)],
        )


def read(target: Target, namespace: str, schema: str) -> RunStatus:
    """Return the status of the singleton tasks; the right to read is enough.

    Raises:
        DatabaseUnavailableError: the server does not answer.
        StandbyServerError: a hot standby does not know who holds a lock.
        SchemaError: there are no tables yet, or the role may not read them.
    """
    return ask(
        target,
        f"highlander-status {namespace}",
        schema,
        (*TABLES, "migration"),
        lambda connection: read_with(connection, namespace, schema),
    )


def read_with(connection: Connection, namespace: str, schema: str) -> RunStatus:
    """Like `read`, over a connection that is open, in autocommit mode; changes nothing, not even the session."""
    with read_only(connection):
        found = version_of(connection, schema)
        if found < RUN_VERSION:
            state = f"of version {found}: singleton tasks came with version {RUN_VERSION}" if found else "missing"
            raise SchemaError(
                f"the tables {prefix(schema)}* are {state}.",
                "Start a worker of this release, or run `celery -A proj highlander migrate`.",
            )
    runs = _runs(connection, namespace, schema)
    owed = {(run.key, run.holder, run.since) for run in runs if run.state == "owed"}
    if owed:  # or given back in this very moment: locks are read as they are, rows as they were a moment before
        again = _runs(connection, namespace, schema)
        runs = [run for run in again if run.state == "held" or (run.key, run.holder, run.since) in owed]
    with read_only(connection):
        rows = connection.execute(sa.text(_WAITING.format(prefix=prefix(schema))), {"namespace": namespace}).all()
    messages = [WaitingMessage(*row) for row in rows]
    return RunStatus(
        sorted(runs, key=lambda run: (run.name, run.since)),
        sorted(messages, key=lambda message: (message.name, message.sent_at)),
    )


def _runs(connection: Connection, namespace: str, schema: str) -> list[HeldKey]:
    values = {"namespace": namespace, "mark": SETTLED}
    with read_only(connection):
        return [HeldKey(*row) for row in connection.execute(sa.text(_RUNS.format(prefix=prefix(schema))), values)]


def pay(connection: Connection, schema: str, owed: HeldKey) -> bool:
    """Free the key of a run that is dead: nobody has heard of its session for its lease; return whether it was there.

    This is what a run does that wants the key, so whoever tries for it in this very moment finds it held.
    """
    connection.execute(sa.text("begin"))
    try:
        got = connection.execute(sa.text("select pg_try_advisory_xact_lock(:key)"), {"key": owed.key}).scalar_one()
        values = {"key": owed.key, "holder": owed.holder, "heartbeats": owed.heartbeats}
        paid = got and connection.execute(sa.text(_PAY.format(prefix=prefix(schema))), values).rowcount
        connection.execute(sa.text("commit"))
    except BaseException:
        roll_back(connection)
        raise
    return bool(paid)


# A holder is a node and the number of its session; a lock of that node's next session does not count, for a key whose
# run goes on is not tried for.
_RUNS = """
select r.name, r.task, r.task_id, case when exists (
    select from pg_locks l join pg_stat_activity a on a.pid = l.pid
    where l.locktype = 'advisory' and l.objsubid = 1 and l.granted
    and l.database = (select oid from pg_database where datname = current_database())
    and (l.classid::bigint << 32) | l.objid::bigint = r.key
    and strpos(a.application_name, ' ' || split_part(r.holder, '/', 1) || ' ') > 0
) then 'held' else 'owed' end,
    u.worker, u.pid, r.since, greatest(0, extract(epoch from clock_timestamp() - r.since))::float8, r.lease,
    r.key, r.holder, u.heartbeats
from {prefix}run r left join {prefix}runner u on u.holder = r.holder
where r.namespace = :namespace and r.key <> :mark"""

_WAITING = """
select name, task, task_id, queue, sent_at, greatest(0, extract(epoch from clock_timestamp() - sent_at))::float8,
    case when expires_at is not null then greatest(0, extract(epoch from expires_at - clock_timestamp()))::float8 end,
    missed
from {prefix}waiting where namespace = :namespace"""

# Not if its session was heard of meanwhile: then it was not dead.
_PAY = """
delete from {prefix}run r where key = :key and holder = :holder and not exists (
    select from {prefix}runner u where u.holder = r.holder and u.heartbeats is distinct from cast(:heartbeats as bigint)
)"""
