"""For the tests of applications: elect and depose, hold a key, take the database away; without any of the servers.

The doubles here pass the same tests as the real things (`tests/contract/test_testing.py`).
"""

from __future__ import annotations

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
from celery_highlander.testing.runs import SingletonRuns

__all__ = [
    "FakeLeadership",
    "SingletonRuns",
    "StillRunningError",
    "TestTerm",
    "elected",
    "leading",
    "send_elected",
    "send_lost",
    "send_stepped_down",
]
