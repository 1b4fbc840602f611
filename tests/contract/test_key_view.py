"""Lock keys as PostgreSQL itself sees them: in `pg_locks`, and computed in SQL."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import psycopg2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from celery_highlander.election.keys import key_from_pg_locks, lock_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.arena.servers import Database

pytestmark = pytest.mark.postgres
SMALLEST, LARGEST = -(1 << 63), (1 << 63) - 1
VIEW = """select classid::bigint, objid::bigint, objsubid, (classid::bigint << 32) | objid::bigint
from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"""
IN_SQL = """select ('x' || encode(substr(digest(convert_to(%s || e'\\x1f' || %s, 'UTF8'), 'blake2b512'), 1, 8), 'hex')
)::bit(64)::bigint"""


@pytest.fixture
def cursor(database: Database) -> Iterator[psycopg2.extensions.cursor]:
    with closing(psycopg2.connect(database.url(None))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            yield cursor


@given(key=st.integers(SMALLEST, LARGEST))
@example(key=-1)
@example(key=0)
@example(key=SMALLEST)
@example(key=LARGEST)
@example(key=-(1 << 32))
@example(key=(1 << 31))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_key_comes_back_from_the_real_view(cursor: psycopg2.extensions.cursor, key: int) -> None:
    cursor.execute("select pg_advisory_lock(%s)", (key,))
    try:
        cursor.execute(VIEW)
        ((upper, lower, form, in_sql),) = cursor.fetchall()
        assert key_from_pg_locks(upper, lower) == in_sql == key
        assert form == 1
    finally:
        cursor.execute("select pg_advisory_unlock_all()")


@given(
    namespace=st.from_regex(r"[A-Za-z0-9_.-]{1,28}", fullmatch=True),
    name=st.from_regex(r"[A-Za-z0-9_.:@/+-]{1,100}", fullmatch=True),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_key_can_be_computed_in_sql(cursor: psycopg2.extensions.cursor, namespace: str, name: str) -> None:
    cursor.execute("select exists (select from pg_available_extensions where name = 'pgcrypto')")
    if cursor.fetchone() != (True,):
        pytest.skip("pgcrypto is not part of this server's build")
    cursor.execute("create extension if not exists pgcrypto")
    cursor.execute(IN_SQL, (namespace, name))
    assert cursor.fetchone() == (lock_key(namespace, name),)
