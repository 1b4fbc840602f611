"""The messages that wait for a key where only one may: a row for each, from before it is sent until it is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery_highlander.store import sa
from celery_highlander.store.migrations import prefix

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection

_TRIES = 5  # of a key whose row comes and goes meanwhile


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message that is about to be sent.

    Attributes:
        key: the lock key of what it waits for.
        name: the key's text.
        queue: where it goes, as far as is known.
        lives: seconds after which it expires; None if it does not.
    """

    key: int
    namespace: str
    name: str
    task: str
    task_id: str
    queue: str
    lives: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """A message that waits, or is lost; `age` in seconds."""

    key: int
    name: str
    task: str
    task_id: str
    queue: str
    age: float
    expired: bool
    missed: int


def _run(connection: Connection, schema: str, statement: str, **values: object) -> Any:  # a CursorResult of any row
    return connection.execute(sa.text(_SQL[statement].format(prefix=prefix(schema))), values)


def claim(connection: Connection, schema: str, message: Waiting) -> Row | None:
    """Record a message that is about to be sent; return what waits already, in which case nothing is recorded."""
    for _ in range(_TRIES):
        claimed = _run(
            connection,
            schema,
            "claim",
            key=message.key,
            namespace=message.namespace,
            name=message.name,
            task=message.task,
            task_id=message.task_id,
            queue=message.queue,
            lives=message.lives,
        ).first()
        if claimed is not None:
            return None
        found = _run(connection, schema, "of_key", key=message.key).first()
        if found is not None:
            return Row(*found)
    return None  # nothing waits for long there


def forget(connection: Connection, schema: str, task_ids: Iterable[str]) -> None:
    """Free the rows of messages that wait no more."""
    _run(connection, schema, "forget", ids=list(task_ids))


def forget_lost(connection: Connection, schema: str, row: Row) -> bool:
    """Free the row of a message that is gone, unless something has happened to it; return whether it was there."""
    deleted: int = _run(connection, schema, "forget_lost", key=row.key, task_id=row.task_id).rowcount
    return bool(deleted)


def stale(connection: Connection, schema: str, namespace: str, age: float) -> list[Row]:
    """Return the rows that have not been looked at for `age` seconds, and note that they are looked at now."""
    return [Row(*row) for row in _run(connection, schema, "stale", namespace=namespace, age=age)]


def missed(connection: Connection, schema: str, row: Row, *, missing: bool) -> None:
    """Note whether a message was found."""
    _run(connection, schema, "missed", key=row.key, task_id=row.task_id, missing=missing)


_ROW = """
key, name, task, task_id, queue, extract(epoch from clock_timestamp() - sent_at)::double precision,
coalesce(expires_at < clock_timestamp(), false), missed"""

_SQL = {
    "claim": """
insert into {prefix}waiting as w (key, namespace, name, task, task_id, queue, expires_at)
values (:key, :namespace, :name, :task, :task_id, :queue,
    clock_timestamp() + make_interval(secs => cast(:lives as double precision)))
on conflict (key) do update set task_id = excluded.task_id where w.task_id = excluded.task_id
returning key""",
    "of_key": f"select {_ROW} from {{prefix}}waiting where key = :key",  # noqa: S608  # our own words
    "forget": "delete from {prefix}waiting where task_id = any(cast(:ids as text[]))",
    "forget_lost": """
delete from {prefix}waiting w where key = :key and task_id = :task_id
and not exists (select from {prefix}run r where r.task_id = w.task_id)""",
    # Skipped are those that another node looks at.
    "stale": f"""
with due as (
    select key from {{prefix}}waiting
    where namespace = :namespace and looked_at < clock_timestamp() - make_interval(secs => :age)
    limit 1000 for update skip locked
)
update {{prefix}}waiting w set looked_at = clock_timestamp() from due where w.key = due.key
returning {_ROW.replace("key,", "w.key,")}""",  # noqa: S608  # as above
    "missed": """
update {prefix}waiting set missed = case when :missing then missed + 1 else 0 end
where key = :key and task_id = :task_id""",
}
