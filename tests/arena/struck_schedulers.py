"""Schedulers that strike their own process, once in the cluster, around a publication.

`HIGHLANDER_ARENA_STRIKE` says where and how: `reserved SIGKILL` before it, `published SIGSTOP` after it. Nothing
has been written to the storage at either point.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import beat
from sqlalchemy_celery_beat import schedulers as alchemy

if TYPE_CHECKING:
    from celery.beat import ScheduleEntry

STRUCK = Path(os.environ.get("HIGHLANDER_ARENA_JOURNALS", ".")) / "struck"
_AFTER = 3  # publications


def strike(point: str) -> None:
    """Strike, if this is where."""
    where, _, number = os.environ.get("HIGHLANDER_ARENA_STRIKE", "").partition(" ")
    if where == point and not STRUCK.exists():
        STRUCK.write_text(str(os.getpid()))
        os.kill(os.getpid(), getattr(signal, number))


class _Struck(beat.Scheduler):
    published = 0

    def apply_async(self, entry: ScheduleEntry, *args: Any, **kwargs: Any) -> Any:
        if self.published >= _AFTER:
            strike("reserved")
        result = super().apply_async(entry, *args, **kwargs)
        if self.published >= _AFTER:
            strike("published")
        self.published += 1
        return result


class Persistent(_Struck, beat.PersistentScheduler):
    """Celery's own, with a file."""


class Alchemy(_Struck, alchemy.DatabaseScheduler):
    """The one of sqlalchemy-celery-beat."""


if os.environ.get("DJANGO_SETTINGS_MODULE"):
    from django_celery_beat import schedulers as django

    class Django(_Struck, django.DatabaseScheduler):
        """The one of django-celery-beat."""
