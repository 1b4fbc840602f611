"""For the tests of applications: elect and depose, hold a key, take the database away; without any of the servers.

The doubles here pass the same tests as the real things (`tests/contract/test_testing.py`, `test_testing_keepers.py`).
`RealKeeper` is no double: it is the real thing, for whom has a PostgreSQL.
"""

from __future__ import annotations

from celery_highlander.testing.database import embedded_postgres, postgres_url
from celery_highlander.testing.fake import FakeKeeper
from celery_highlander.testing.leaderships import (
    FakeLeadership,
    StillRunningError,
    TestTerm,
    elected,
    leading,
    send_elected,
    send_lost,
    send_stepped_down,
)
from celery_highlander.testing.real import RealKeeper
from celery_highlander.testing.runs import SingletonRuns, deliver
from celery_highlander.testing.terms import Term, Work

__all__ = [
    "FakeKeeper",
    "FakeLeadership",
    "RealKeeper",
    "SingletonRuns",
    "StillRunningError",
    "Term",
    "TestTerm",
    "Work",
    "deliver",
    "elected",
    "embedded_postgres",
    "leading",
    "postgres_url",
    "send_elected",
    "send_lost",
    "send_stepped_down",
]
