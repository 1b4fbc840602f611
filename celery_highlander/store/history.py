"""Who led what, when, and why it ended: the terms on record, with the gaps between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from celery_highlander.store import sa
from celery_highlander.store.migrations import prefix

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy import Connection


@dataclass(frozen=True, slots=True)
class PastTerm:
    """One term; all instants by the server's clock.

    Attributes:
        name: the singleton.
        token: the term's fencing token.
        worker, pid, node: who held it.
        began_at: when the lock was its; elected_at: since when it acted, None if it never did.
        ended_at: when its end was recorded, None where nobody recorded it: it lasts, or was cut off for good.
        lasts: it is the singleton's present term, and its end is not on record.
        reason: why it ended.
        gap: seconds from the end of the last term that acted to this one's first act; None where either is not known.
    """

    name: str
    token: int
    worker: str
    pid: int
    node: str
    began_at: datetime
    elected_at: datetime | None
    ended_at: datetime | None
    lasts: bool
    reason: str | None
    gap: float | None

    @property
    def seconds_led(self) -> float | None:
        """How long it acted, in seconds; None where it never did, or its end is not known."""
        if self.elected_at is None or self.ended_at is None:
            return None
        return max(0.0, (self.ended_at - self.elected_at).total_seconds())


_TERMS = """
select t.key, t.token, t.worker, t.pid, t.node, t.began_at, t.elected_at, t.ended_at,
    t.ended_at is null and t.token = s.token as lasts, t.reason
from unnest(cast(:keys as bigint[])) as wanted (key)
join {prefix}singleton s on s.key = wanted.key
cross join lateral (
    select * from {prefix}term e where e.key = wanted.key order by e.token desc limit :limit
) t
order by t.began_at, t.token"""


def read(connection: Connection, schema: str, keys: Mapping[str, int], limit: int) -> list[PastTerm]:
    """Return the newest `limit` terms of each singleton, the oldest first."""
    names = {key: name for name, key in keys.items()}
    values = {"keys": list(names), "limit": limit}
    terms: list[PastTerm] = []
    ended: dict[str, datetime | None] = {}
    for key, token, worker, pid, node, began_at, elected_at, ended_at, lasts, reason in connection.execute(
        sa.text(_TERMS.format(prefix=prefix(schema))), values
    ):
        name = names[key]
        before = ended.get(name)
        gap = None if before is None or elected_at is None else (elected_at - before).total_seconds()
        what = (began_at, elected_at, ended_at, lasts, reason, gap)
        terms.append(PastTerm(name, token, worker, pid, node, *what))
        if elected_at is not None:
            ended[name] = ended_at
    return terms
