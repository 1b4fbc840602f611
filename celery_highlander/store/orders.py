"""What operators ask of the nodes: written to the table that every node reads, and told to them at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from celery_highlander.election.orders import Kind
from celery_highlander.store import sa
from celery_highlander.store.migrations import prefix, roll_back
from celery_highlander.store.terms import channel

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sqlalchemy import Connection

ORDER_VERSION = 4
"""The version of the tables that brought orders."""

PREFERENCE = 30.0
"""Seconds for which a singleton that was told to go to a node belongs to it."""


@dataclass(frozen=True, slots=True)
class StandingOrder:
    """An order as operators see it.

    Attributes:
        kind: what was asked for.
        name: the singleton; empty for all of them.
        node: the uuid of the node to drain, or the worker that is preferred.
        asked_by, reason, asked_at: who, why and when.
        age: seconds since then, by the server's clock.
    """

    kind: Kind
    name: str
    node: str
    asked_by: str
    reason: str
    asked_at: datetime
    age: float

    def pauses(self, name: str) -> bool:
        """Whether it keeps everybody from leading `name`."""
        return self.kind is Kind.PAUSE and self.name in ("", name)


_READ = """
select kind, name, node, asked_by, reason, asked_at, extract(epoch from clock_timestamp() - asked_at)::float8
from {prefix}order where namespace = :namespace and (until is null or until > clock_timestamp())
order by kind, name, node"""

_WRITE = """
insert into {prefix}order (namespace, kind, name, node, token, patient, reason, asked_by, until)
values (:namespace, :kind, :name, :node, :token, :patient, :reason, :asked_by,
    clock_timestamp() + make_interval(secs => cast(:lives as float8)))
on conflict (namespace, kind, name, node) do update set token = excluded.token, patient = excluded.patient,
    reason = excluded.reason, asked_by = excluded.asked_by, asked_at = clock_timestamp(), until = excluded.until"""

_WITHDRAW = """
delete from {prefix}order where namespace = :namespace and kind = :kind
    and (cast(:name as text) is null or name = :name) and (cast(:node as text) is null or node = :node)"""


def read(connection: Connection, namespace: str, schema: str) -> list[StandingOrder]:
    """Return the orders that hold, those of a later release left out."""
    known = {kind.value for kind in Kind}
    rows = connection.execute(sa.text(_READ.format(prefix=prefix(schema))), {"namespace": namespace})
    return [StandingOrder(Kind(kind), *rest) for kind, *rest in rows if kind in known]


class OrderBook:
    """The orders of one namespace, for one operator.

    Args:
        connection: in autocommit mode.
        namespace, schema: whose.
        asked_by: who asks, for logs and the history.
        reason: why.
    """

    def __init__(self, connection: Connection, namespace: str, schema: str, asked_by: str, reason: str = "") -> None:
        self._connection = connection
        self._namespace = namespace
        self._schema = schema
        self._asked_by = asked_by
        self._reason = reason

    def pause(self, names: Iterable[str], *, patient: bool) -> None:
        """Have nobody lead `names` ("" is all) until they are resumed."""
        self._write([(Kind.PAUSE, name, "", None, None) for name in names], patient=patient)

    def resume(self, names: Iterable[str] | None) -> int:
        """Let `names` be led again, or with None everything; return how many pauses there were."""
        return self._withdraw(Kind.PAUSE, names)

    def step_down(self, name: str, token: int, worker: str | None, *, patient: bool) -> None:
        """Have the term `token` of `name` end, and the next one be that of `worker`, where one is given."""
        orders: list[tuple[Kind, str, str, int | None, float | None]]
        orders = [(Kind.STEP_DOWN, name, "", token, PREFERENCE)]
        if worker is None:
            self._write(orders, patient=patient)
            return
        orders.append((Kind.PREFER, name, worker, None, PREFERENCE))
        self._write(orders, patient=patient, instead=(Kind.PREFER, name))

    def prefer(self, name: str, worker: str) -> None:
        """Have `name` belong to `worker` as long as that is there, and to nobody else."""
        self._write([(Kind.PREFER, name, worker, None, None)], patient=True, instead=(Kind.PREFER, name))

    def prefer_nobody(self, name: str) -> int:
        """Let any node lead `name`; return how many were preferred."""
        return self._withdraw(Kind.PREFER, [name])

    def drain(self, node: str, *, patient: bool) -> None:
        """Have the node of this uuid lead nothing."""
        self._write([(Kind.DRAIN, "", node, None, None)], patient=patient)

    def undrain(self, node: str) -> int:
        """Let it lead again; return whether there was an order."""
        return self._withdraw(Kind.DRAIN, None, node)

    def _write(
        self,
        orders: list[tuple[Kind, str, str, int | None, float | None]],
        *,
        patient: bool,
        instead: tuple[Kind, str] | None = None,
    ) -> None:
        """Write all of them at once, in the place of those of that kind and name."""
        sql = sa.text(_WRITE.format(prefix=prefix(self._schema)))
        common = {"namespace": self._namespace, "reason": self._reason, "asked_by": self._asked_by}
        self._connection.execute(sa.text("begin"))
        try:
            if instead is not None:
                self._delete(*instead, None)
            for kind, name, node, token, lives in orders:
                values = {"kind": kind.value, "name": name, "node": node, "token": token, "lives": lives}
                self._connection.execute(sql, {**common, **values, "patient": patient})
            self._connection.execute(sa.text("commit"))
        except BaseException:
            roll_back(self._connection)
            raise
        self._tell()

    def _withdraw(self, kind: Kind, names: Iterable[str] | None, node: str | None = None) -> int:
        gone = sum(self._delete(kind, name, node) for name in ([None] if names is None else names))
        self._tell()
        return gone

    def _delete(self, kind: Kind, name: str | None, node: str | None) -> int:
        sql = sa.text(_WITHDRAW.format(prefix=prefix(self._schema)))
        values = {"namespace": self._namespace, "kind": kind.value, "name": name, "node": node}
        return int(self._connection.execute(sql, values).rowcount)

    def _tell(self) -> None:
        self._connection.execute(sa.text("select pg_notify(:channel, '')"), {"channel": channel(self._namespace)})


_FENCE = """
select l.pid, pg_terminate_backend(l.pid)
from pg_locks l
where l.locktype = 'advisory' and l.objsubid = 1 and l.granted
    and l.database = (select oid from pg_database where datname = current_database())
    and (l.classid::bigint << 32) | l.objid::bigint = :key"""


def fence(connection: Connection, key: int) -> int | None:
    """End the session that holds the lock `key`; return its backend's pid, None where nobody holds it.

    Raises:
        DBAPIError: the role may not end that session: it needs to be of the same role, or of `pg_signal_backend`.
    """
    row = connection.execute(sa.text(_FENCE), {"key": key}).first()
    return None if row is None else int(row[0])
