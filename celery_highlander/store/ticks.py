"""The tick ledger: which ticks were claimed, published and run, and what is known of each entry; knows no Celery.

A tick is an entry of the schedule and the instant at which it is due. It is claimed in one statement together with the
entry's `last_run_at`, and only by the present term: the statement locks the term's row as a fence does, so a leader
that was paused claims nothing any more. Its id follows from entry and instant, and is the primary key, so no tick is
claimed twice, whatever the clocks of the nodes say.

Publishing cannot be part of that transaction: the broker is another system. So a publication is written down before it
begins (`attempts`) and settled after it; what is not settled is published again, by the next leader too. Of the copies
of a tick's message the first one that a worker is about to run is written down (`run_by`), and no other one is run.
Where only one publication was ever begun, there is one copy, and the row may go soon after it is settled.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery_highlander.errors import StaleTermError
from celery_highlander.store import sa
from celery_highlander.store.migrations import prefix

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Connection, TextClause

SETTLED_KEPT = 600.0
"""Seconds for which a tick that was published once stays on record."""

REPUBLISHED_KEPT = 7 * 86400.0
"""Seconds for which a tick that was published more than once does: so long may its second message wait in a queue."""

ABSENCE_KEPT = 3600.0
"""Seconds for which an entry that is no longer in the schedule is remembered, while a beat with others runs. During a
rolling deployment the leader may be of either version, and must not make the other one's entries new each time."""

_NAMESPACE = uuid.UUID("5f2b6f0e-6c1c-5f0b-9d53-1f7a1f0c2b9a")


@dataclass(frozen=True, slots=True)
class EntryState:
    """What is known of an entry: the last tick that was accounted for, and counts."""

    last_run_at: datetime
    run_count: int
    skipped_count: int


@dataclass(frozen=True, slots=True)
class Tick:
    """One tick: `id` is a UUID, `due_at` is aware; `attempt` counts the publications begun, this one included."""

    id: str
    entry: str
    due_at: datetime
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Advance:
    """How an entry moves on: to `last_run_at`; `skipped` ticks were passed over, `ticks` are to be published."""

    entry: str
    last_run_at: datetime
    skipped: int
    ticks: tuple[Tick, ...]


def tick_id(key: int, entry: str, due_at: datetime) -> str:
    """Return the id of a tick, the same on every node: a name-based UUID (RFC 9562, version 5)."""
    return str(uuid.uuid5(_NAMESPACE, f"{key} {due_at.timestamp():.6f} {entry}"))


class Ledger:
    """The statements of a beat, for the term `token` of the singleton with the lock key `key`.

    The connection is in autocommit mode: each method is one transaction, and may raise whatever the driver raises.
    """

    def __init__(self, connection: Connection, key: int, token: int, schema: str) -> None:
        self._connection = connection
        self._term = {"key": key, "token": token}
        self._statements = statements(schema, _SQL)

    def _run(self, statement: str, **values: object) -> Any:  # a CursorResult of any row
        return self._connection.execute(self._statements[statement], {**self._term, **values})

    def load(self, started: Mapping[str, datetime]) -> dict[str, EntryState]:
        """Return the state of each entry that is in the schedule.

        Args:
            started: for each entry the instant from which it counts if it is new. It is written down at once: an
                entry that has an interval longer than any leader lives would never be due otherwise.

        Raises:
            StaleTermError: a later term has begun.
        """
        rows = self._run("load", names=list(started), started=list(started.values()), absence=ABSENCE_KEPT).all()
        if not rows and started:
            raise _stale(self._term["token"])
        return {name: EntryState(last, runs, skipped) for name, last, runs, skipped in rows}

    def seen(self, names: Iterable[str]) -> None:
        """Note that these entries are still in the schedule."""
        self._run("seen", names=list(names))

    def open_ticks(self) -> list[Tick]:
        """Return the ticks that were claimed and not settled, by whichever leader, in the order in which they are due.

        Each counts one more publication from now on.

        Raises:
            StaleTermError: a later term has begun.
        """
        return self.again([row.id for row in self._run("open")])

    def again(self, ids: Sequence[str]) -> list[Tick]:
        """Note that these ticks are about to be published once more; return them, as `open_ticks` does.

        Raises:
            StaleTermError: a later term has begun.
        """
        if not ids:
            return []  # which says nothing of the term
        rows = self._run("again", ids=list(ids)).all()
        if not rows:
            raise _stale(self._term["token"])
        return sorted((Tick(*row) for row in rows), key=lambda tick: (tick.due_at, tick.entry))

    def claim(self, advances: Sequence[Advance]) -> set[str]:
        """Claim ticks, and move their entries on; return the ids of those that nobody had claimed before.

        Raises:
            StaleTermError: a later term has begun; nothing was claimed.
        """
        ticks = [tick for advance in advances for tick in advance.ticks]
        rows = self._run(
            "claim",
            names=[advance.entry for advance in advances],
            last=[advance.last_run_at for advance in advances],
            counts=[len(advance.ticks) for advance in advances],
            skipped=[advance.skipped for advance in advances],
            ids=[tick.id for tick in ticks],
            entries=[tick.entry for tick in ticks],
            due=[tick.due_at for tick in ticks],
        ).all()
        if not rows:
            raise _stale(self._term["token"])
        return {row.id for row in rows if row.id is not None}

    def settle(self, outcomes: Mapping[str, str | None]) -> None:
        """Note what became of publications: None for a published tick, else why it never will be."""
        self._run("settle", ids=list(outcomes), failures=list(outcomes.values()))

    def prune(self) -> int:
        """Delete what nobody needs any more; return how many ticks."""
        return int(self._run("prune", once=SETTLED_KEPT, more=REPUBLISHED_KEPT).rowcount)


def claim_runs(connection: Connection, schema: str, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], bool]:
    """Say for each (tick, copy of its message) whether it may be run: it is the first copy, or was that before.

    A tick that is not on record any more had one copy alone.
    """
    sql = statements(schema, _RUNS)["runs"]
    values = {"ids": [tick for tick, _ in wanted], "copies": [copy for _, copy in wanted]}
    return {(row.id, row.copy): row.may_run for row in connection.execute(sql, values)}


def statements(schema: str, sql: Mapping[str, str]) -> dict[str, TextClause]:
    """Return the statements for the tables of a schema."""
    names = prefix(schema)
    term = _TERM.format(prefix=names)
    return {name: sa.text(statement.format(prefix=names, term=term)) for name, statement in sql.items()}


def _stale(token: int) -> StaleTermError:
    return StaleTermError(
        f"the term {token} of this beat is over: a later one has begun.",
        "This process was paused, or cut off, while another node took over; it publishes nothing any more.",
    )


_TERM = """term as materialized (
    select 1 from {prefix}singleton where key = :key and token = :token for key share
)"""

# Several rows of ticks are locked in the order of their ids: beats and workers that have the same ones would wait for
# each other otherwise.
_SQL = {
    "load": """
with {term}, newest as (
    select max(seen_at) as seen_at from {prefix}entry where key = :key
), loaded as (
    insert into {prefix}entry as e (key, name, last_run_at)
    select :key, wanted.name, wanted.started
    from unnest(cast(:names as text[]), cast(:started as timestamptz[])) as wanted (name, started)
    where exists (select from term)
    on conflict (key, name) do update set
        last_run_at = case
            when e.seen_at < (select seen_at from newest) - make_interval(secs => :absence)
            then excluded.last_run_at else e.last_run_at end,
        seen_at = excluded.seen_at
    returning e.name, e.last_run_at, e.run_count, e.skipped_count
)
select * from loaded""",
    "seen": """
update {prefix}entry set seen_at = clock_timestamp() where key = :key and name = any(cast(:names as text[]))""",
    "open": "select id::text from {prefix}tick where key = :key and settled_at is null",
    "again": """
with {term}, locked as materialized (
    select id from {prefix}tick where id = any(cast(cast(:ids as text[]) as uuid[])) order by id for update
)
update {prefix}tick set attempts = attempts + 1, token = :token
where id in (select id from locked) and exists (select from term)
returning id::text, entry, due_at, attempts""",
    # The row of each advance comes back, with or without ticks: none at all means that the term is over.
    "claim": """
with {term}, moved as (
    update {prefix}entry e
    set last_run_at = wanted.last, run_count = e.run_count + wanted.runs,
        skipped_count = e.skipped_count + wanted.skipped
    from unnest(
        cast(:names as text[]), cast(:last as timestamptz[]), cast(:counts as bigint[]), cast(:skipped as bigint[])
    ) as wanted (name, last, runs, skipped)
    where e.key = :key and e.name = wanted.name and exists (select from term)
), claimed as (
    insert into {prefix}tick (id, key, entry, due_at, token)
    select wanted.id, :key, wanted.entry, wanted.due_at, :token
    from unnest(cast(cast(:ids as text[]) as uuid[]), cast(:entries as text[]), cast(:due as timestamptz[]))
        as wanted (id, entry, due_at)
    where exists (select from term)
    on conflict (id) do nothing
    returning id::text
)
select c.id from term left join claimed c on true""",
    "settle": """
with outcome as (
    select * from unnest(cast(cast(:ids as text[]) as uuid[]), cast(:failures as text[])) as outcome (id, failure)
), locked as materialized (
    select id from {prefix}tick where id in (select id from outcome) order by id for update
)
update {prefix}tick t set settled_at = clock_timestamp(), failure = outcome.failure
from outcome join locked on locked.id = outcome.id
where t.id = outcome.id""",
    "prune": """
delete from {prefix}tick
where key = :key
    and settled_at < clock_timestamp() - make_interval(secs => case when attempts > 1 then :more else :once end)""",
}

_RUNS = {
    "runs": """
with wanted as (
    select * from unnest(cast(cast(:ids as text[]) as uuid[]), cast(cast(:copies as text[]) as uuid[]))
        as wanted (id, copy)
), locked as materialized (
    select id from {prefix}tick where id in (select id from wanted) order by id for update
), ran as (
    update {prefix}tick t set run_by = wanted.copy, run_at = coalesce(t.run_at, clock_timestamp())
    from wanted join locked on locked.id = wanted.id
    where t.id = wanted.id and (t.run_by is null or t.run_by = wanted.copy)
    returning t.id, t.run_by
)
select wanted.id::text, wanted.copy::text, ran.id is not null or t.id is null as may_run
from wanted
left join ran on ran.id = wanted.id and ran.run_by = wanted.copy
left join {prefix}tick t on t.id = wanted.id""",
}
