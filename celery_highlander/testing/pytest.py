"""Fixtures: `pytest_plugins = ["celery_highlander.testing.pytest"]` in `conftest.py`.

Not registered by an entry point: every run of pytest in an environment with this package would import it, and Celery.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from celery_highlander.testing import FakeLeadership, SingletonRuns, leading

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery


@pytest.fixture
def highlander_leadership() -> Iterator[FakeLeadership]:
    """A term under which the test runs, as a task of a singleton queue does."""
    with leading() as leadership:
        yield leadership


@pytest.fixture
def highlander_runs(celery_app: Celery) -> Iterator[SingletonRuns]:
    """The keys of singleton tasks of the fixture `celery_app`, held in memory."""
    with SingletonRuns(celery_app) as runs:
        yield runs
