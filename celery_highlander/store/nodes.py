"""The nodes whose lock sessions live, with the names that they go by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from celery_highlander.store import sa
from celery_highlander.store.migrations import prefix
from celery_highlander.store.terms import beat_group, member_of

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node.

    Attributes:
        node: its uuid, a new one with each start of its keeper.
        worker: its Celery node name, and `pid` the worker's; None where it has not put itself on record.
        eligible: whether it may lead now; False too while it leaves, or is drained.
        drained: an operator has asked it to lead nothing.
        alone: a beat process of its own, which leads nothing but the beat.
        release: the version of its package.
        since: since when its lock session is open, and `age` for how many seconds, by the server's clock.
    """

    node: str
    worker: str | None
    pid: int | None
    priority: int
    eligible: bool
    drained: bool
    alone: bool
    release: str | None
    since: datetime | None
    age: float | None

    def goes_by(self, word: str) -> bool:
        """Whether an operator means it by `word`: its name, or the beginning of its uuid."""
        return bool(word) and (word == self.worker or self.node.startswith(word))


_NODES = """
select a.application_name, n.worker, n.pid, exists (
        select from {prefix}order o where o.namespace = :namespace and o.kind = 'drain' and o.node = n.node
    ), n.release, n.seen_at, extract(epoch from clock_timestamp() - n.seen_at)::float8
from pg_stat_activity a
left join {prefix}node n on n.node = split_part(a.application_name, ' ', 3)
where a.datname = current_database() and a.application_name like 'highlander %'"""


def read(connection: Connection, namespace: str, schema: str) -> list[NodeStatus]:
    """Return the nodes of the namespace, by name; the tables have to be of version 4 at least."""
    found = []
    for name, worker, pid, drained, *more in connection.execute(
        sa.text(_NODES.format(prefix=prefix(schema))), {"namespace": namespace}
    ):
        for group in (namespace, beat_group(namespace)):
            if (member := member_of(name, group)) is not None:
                alone = group != namespace
                status = (worker, pid, member.priority, member.eligible, drained, alone, *more)
                found.append(NodeStatus(member.node, *status))
    return sorted(found, key=lambda node: (node.worker or "", node.node))
