"""A beat that goes by another wall clock: `HIGHLANDER_ARENA_SHIFT` seconds ahead of the true one.

In this process and in Python alone, which is where beat looks at the time.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone, tzinfo
from typing import TYPE_CHECKING

from celery_highlander.beat import ledger
from celery_highlander.beat.scheduler import HighlanderScheduler

if TYPE_CHECKING:
    from celery import Celery

SHIFT = timedelta(seconds=float(os.environ.get("HIGHLANDER_ARENA_SHIFT", "0")))


class ShiftedDatetime(datetime):
    """`datetime` with another present."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> ShiftedDatetime:
        shifted = datetime.now(tz) + SHIFT
        return cls.fromtimestamp(shifted.timestamp(), tz)


class ShiftedScheduler(HighlanderScheduler):
    """What the beat is told to use."""

    def __init__(self, app: Celery, *args: object, **kwargs: object) -> None:
        app.now = lambda: (datetime.now(timezone.utc) + SHIFT).astimezone(app.timezone)
        super().__init__(app, *args, **kwargs)  # type: ignore[arg-type]  # as Celery gives them


ledger.datetime = ShiftedDatetime  # type: ignore[attr-defined]  # the present of the ledger's scheduler
