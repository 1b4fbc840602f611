"""Fixtures: `pytest_plugins = ["celery_highlander.testing.pytest"]` in `conftest.py`.

Not registered by an entry point: every run of pytest in an environment with this package would import it, and Celery.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from celery import current_app

from celery_highlander.testing import (
    FakeKeeper,
    FakeLeadership,
    RealKeeper,
    SingletonRuns,
    embedded_postgres,
    leading,
    postgres_url,
)
from celery_highlander.testing.database import NoPostgresError

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


@pytest.fixture
def highlander_app() -> Celery:
    """The app under test: Celery's current one. Override it where that is another one."""
    return current_app._get_current_object()


@pytest.fixture
def highlander_keeper(highlander_app: Celery) -> Iterator[FakeKeeper]:
    """A `FakeKeeper`: elections and singleton runs without a database."""
    with FakeKeeper(highlander_app) as keeper:
        yield keeper


@pytest.fixture(scope="session")
def highlander_database_url() -> Iterator[str]:
    """The URL of a PostgreSQL: of `HIGHLANDER_TEST_URL`, else of one that is started; without either a skip.

    Override it where there is a fixture with a database already.
    """
    url = postgres_url()
    if url is not None:
        yield url
        return
    try:
        server = embedded_postgres()
        url = server.__enter__()
    except NoPostgresError as error:
        pytest.skip(str(error))
    try:
        yield url
    finally:
        server.__exit__(None, None, None)


@pytest.fixture
def highlander_real_keeper(highlander_app: Celery, highlander_database_url: str) -> Iterator[RealKeeper]:
    """A `RealKeeper`: the same with a real keeper and a real PostgreSQL."""
    with RealKeeper(highlander_app, highlander_database_url) as keeper:
        yield keeper
