"""Migrations: they run once, whoever starts them, and say what is needed where they may not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Barrier
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from celery_highlander.errors import SchemaError
from celery_highlander.store import migrations
from celery_highlander.store.connecting import Target, open_connection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from tests.arena.servers import Database

pytestmark = pytest.mark.postgres
TABLES = "select schemaname || '.' || tablename from pg_tables where tablename like 'highlander%' order by 1"
NAMES = ("entry", "migration", "node", "order", "run", "runner", "singleton", "term", "tick", "waiting")
ALL = [f"highlander_{name}" for name in NAMES]


def connect(url: str) -> Connection:
    return open_connection(Target(url, {}), "contract")


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    with closing(connect(url)) as connection:
        yield connection


@pytest.fixture
def plain_role(database: Database) -> Iterator[str]:
    """A role without any right of its own; nobody but the owner may create tables."""
    database.execute("create role clerk login")
    yield "clerk"
    database.execute("drop owned by clerk")
    database.execute("drop role clerk")


def tables(database: Database) -> list[str]:
    return [str(name) for (name,) in database.execute(TABLES)]


def test_the_first_migration_creates_the_tables(connection: Connection, database: Database) -> None:
    assert migrations.version_of(connection, "") == 0
    assert migrations.migrate(connection, "") == 0
    assert tables(database) == [f"public.{name}" for name in ALL]
    assert migrations.version_of(connection, "") == migrations.VERSION


def test_a_second_migration_changes_nothing(connection: Connection, database: Database) -> None:
    migrations.migrate(connection, "")
    before = database.execute("select * from highlander_migration")
    assert migrations.migrate(connection, "") == migrations.VERSION
    assert database.execute("select * from highlander_migration") == before


def test_the_schema_is_created_where_it_is_missing(connection: Connection, database: Database) -> None:
    migrations.migrate(connection, "elections")
    assert tables(database) == [f"elections.{name}" for name in ALL]
    assert migrations.version_of(connection, "") == 0


def test_eight_nodes_may_migrate_at_once(url: str, database: Database) -> None:
    ready = Barrier(8)

    def migrate(_: int) -> int:
        with closing(connect(url)) as connection:
            # A backend remembers that a table is missing, until it takes note of what others did meanwhile.
            assert migrations.version_of(connection, "elections") == 0
            ready.wait(30)
            return migrations.migrate(connection, "elections")

    with ThreadPoolExecutor(8) as pool:
        versions = sorted(pool.map(migrate, range(8)))
    assert versions == [0] + [migrations.VERSION] * 7
    assert database.execute("select count(*) from elections.highlander_migration") == [(migrations.VERSION,)]


def test_the_script_does_what_the_migration_does(connection: Connection, database: Database) -> None:
    columns = (
        "select table_schema, table_name, column_name, data_type, column_default, is_nullable "
        "from information_schema.columns where table_name like 'highlander%' order by 1, 2, 3"
    )
    migrations.migrate(connection, "")
    migrated = database.execute(columns)
    database.execute(f"drop table {', '.join(ALL)}")
    database.execute(migrations.script(""))
    assert database.execute(columns) == migrated
    migrations.ensure(connection, "", may_migrate=False)


def test_the_script_for_a_schema_creates_it(connection: Connection, database: Database) -> None:
    database.execute(migrations.script("elections"))
    migrations.ensure(connection, "elections", may_migrate=False)


def test_a_failed_migration_leaves_nothing_behind(
    connection: Connection, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, ("select 1 / 0",)))
    monkeypatch.setattr(migrations, "VERSION", migrations.VERSION + 1)
    with pytest.raises(Exception, match="division by zero"):
        migrations.migrate(connection, "")
    assert tables(database) == []
    assert connection.execute(text("select 1")).scalar() == 1  # no transaction is left open


def test_a_later_migration_runs_alone(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    migrations.migrate(connection, "")
    later = ("alter table {prefix}term add column note text",)
    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, later))
    monkeypatch.setattr(migrations, "VERSION", migrations.VERSION + 1)
    assert migrations.migrate(connection, "") == migrations.VERSION - 1
    assert connection.execute(text("select note from highlander_term")).all() == []


def test_tables_of_a_newer_release_are_fine(connection: Connection, database: Database) -> None:
    migrations.migrate(connection, "")
    database.execute("insert into highlander_migration (version) values (99)")
    migrations.ensure(connection, "", may_migrate=True)
    assert migrations.migrate(connection, "") == 99


def test_missing_tables_are_an_error_where_nobody_may_migrate(connection: Connection, database: Database) -> None:
    with pytest.raises(SchemaError, match="highlander migrate"):
        migrations.ensure(connection, "", may_migrate=False)
    assert tables(database) == []


@pytest.mark.parametrize("schema", ["", "elections"])
def test_a_role_that_may_not_create_tables_is_told_the_sql(
    database: Database, driver: str, plain_role: str, schema: str
) -> None:
    database.execute("revoke create on schema public from public")
    with closing(connect(database.url(driver, user=plain_role))) as connection:
        with pytest.raises(SchemaError, match="permission denied") as caught:
            migrations.ensure(connection, schema, may_migrate=True)
        assert "highlander migrate" in caught.value.hint
        assert "grant select, insert, update" in caught.value.hint
        assert connection.execute(text("select 1")).scalar() == 1
    assert tables(database) == []


def test_a_role_without_rights_on_the_tables_is_told_which(
    connection: Connection, database: Database, driver: str, plain_role: str
) -> None:
    migrations.migrate(connection, "")
    database.execute("grant usage on schema public to clerk")
    database.execute("grant select on highlander_migration, highlander_singleton to clerk")
    with closing(connect(database.url(driver, user=plain_role))) as theirs:
        with pytest.raises(SchemaError, match="lacks insert on highlander_singleton, update on highlander_singleton"):
            migrations.ensure(theirs, "", may_migrate=True)
        for statement in migrations.grants("", plain_role).split(";"):
            if statement.strip():
                database.execute(statement)
        migrations.ensure(theirs, "", may_migrate=True)


def test_a_table_that_was_dropped_by_hand_is_named(connection: Connection, database: Database) -> None:
    migrations.migrate(connection, "")
    database.execute("drop table highlander_term")
    with pytest.raises(SchemaError, match="highlander_term"):
        migrations.ensure(connection, "", may_migrate=True)


def test_a_role_without_usage_of_the_schema_is_told_the_sql(
    connection: Connection, database: Database, driver: str, plain_role: str
) -> None:
    migrations.migrate(connection, "elections")
    with closing(connect(database.url(driver, user=plain_role))) as theirs:
        with pytest.raises(SchemaError, match="permission denied for schema elections") as caught:
            migrations.ensure(theirs, "elections", may_migrate=True)
        assert 'grant usage on schema "elections"' in caught.value.hint
        for statement in migrations.grants("elections", plain_role).split(";"):
            if statement.strip():
                database.execute(statement)
        migrations.ensure(theirs, "elections", may_migrate=True)
