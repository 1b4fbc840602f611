"""For tests of your own singletons: elect, depose, lose the lock session or the database, at will.

`FakeKeeper` needs no database and no process; `RealKeeper` does the same with a real keeper and a PostgreSQL. The
fixtures of `celery_highlander.testing.pytest` hand out both.
"""

from __future__ import annotations

from celery_highlander.testing.database import embedded_postgres, postgres_url
from celery_highlander.testing.fake import FakeKeeper
from celery_highlander.testing.real import RealKeeper
from celery_highlander.testing.runs import deliver
from celery_highlander.testing.terms import NotStoppedError, Term, Work

__all__ = [
    "FakeKeeper",
    "NotStoppedError",
    "RealKeeper",
    "Term",
    "Work",
    "deliver",
    "embedded_postgres",
    "postgres_url",
]
