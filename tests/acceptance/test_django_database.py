"""`celery_highlander.contrib.django`: which databases it takes, and what it says of the others."""

from __future__ import annotations

import json
import subprocess
import sys
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest

from tests.arena.cluster import ROOT
from tests.arena.processes import free_port

if TYPE_CHECKING:
    from pathlib import Path

    from tests.arena.servers import Database

POSTGRESQL = {"ENGINE": "django.db.backends.postgresql"}


def told(databases: dict[str, Any], code: str, **env: str) -> str:
    """Run a program in a Django project of these databases; return what it prints."""
    source = f"""
import django
from django.conf import settings
settings.configure(DATABASES={databases})
django.setup()
from celery_highlander import HighlanderError
from celery_highlander.contrib.django import engine, fence
from celery_highlander.store.connecting import open_connection
from celery_highlander.worker.targets import target_of_engine, target_of_path
try:
{_indented(code)}
except HighlanderError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", source],
        env={"PYTHONPATH": str(ROOT), **env},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _indented(code: str) -> str:
    return "\n".join(f"    {line}" for line in dedent(code).strip().splitlines())


@pytest.mark.postgres
def test_it_connects_as_django_would_in_each_way_that_django_has(postgres: Database, tmp_path: Path) -> None:
    server = postgres.server
    tcp = {**POSTGRESQL, "HOST": "127.0.0.1", "PORT": server.port, "NAME": postgres.name, "USER": "postgres"}
    service = tmp_path / "pg_service.conf"
    service.write_text(f"[shop]\nhost=127.0.0.1\nport={server.port}\ndbname={postgres.name}\nuser=postgres\n")
    postgres.execute("drop role if exists shop_owner")
    postgres.execute("create role shop_owner")
    databases = {
        "default": {**tcp, "PASSWORD": "s3cret", "OPTIONS": {"sslmode": "prefer", "isolation_level": 2}},
        "socket": {**tcp, "HOST": str(server.socket_directory)},
        "service": {**POSTGRESQL, "OPTIONS": {"service": "shop"}},
        "hosts": {**tcp, "HOST": "127.0.0.1,127.0.0.1", "PORT": f"{free_port()},{server.port}"},
        "role": {**tcp, "OPTIONS": {"assume_role": "shop_owner", "options": "-c search_path=elsewhere"}},
        "pooled": {**tcp, "OPTIONS": {"pool": {"min_size": 2}, "server_side_binding": True, "prepare_threshold": 5}},
    }
    code = """
    from sqlalchemy import text
    for alias in settings.DATABASES:
        target = target_of_engine(engine(alias))
        with open_connection(target, "test") as connection:
            row = connection.execute(text("select current_database(), current_user, current_setting('search_path')"))
            print(alias, *row.one(), target, sep="|")
    """
    try:
        said = told(databases, code, PGSERVICEFILE=str(service))
    finally:
        postgres.execute("drop role shop_owner")
    rows = {line.split("|")[0]: line.split("|")[1:] for line in said.splitlines()}
    assert {alias: row[0] for alias, row in rows.items()} == dict.fromkeys(databases, postgres.name), said
    assert rows["role"][1:3] == ["shop_owner", "elsewhere"]
    assert {row[1] for alias, row in rows.items() if alias != "role"} == {"postgres"}
    shown = f"postgres@127.0.0.1:{server.port}/{postgres.name}"
    assert shown in rows["default"][3]
    assert "s3cret" not in said
    assert rows["socket"][3].endswith(f"://postgres@/{postgres.name})")


def test_a_backend_that_wraps_djangos_own_is_taken_whatever_its_name_and_its_passwords_are_asked_for(
    tmp_path: Path,
) -> None:
    backend = tmp_path / "tokens"
    backend.mkdir()
    (backend / "__init__.py").write_text("")
    (backend / "base.py").write_text(
        dedent("""
        from django.db.backends.postgresql import base
        class DatabaseWrapper(base.DatabaseWrapper):
            def get_connection_params(self):
                return {**super().get_connection_params(), "password": "a token"}
        """)
    )
    databases = {"default": {"ENGINE": "tokens", "NAME": "shop"}}
    said = told(databases, "print(target_of_engine(engine()).connect_args)", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert "'password': 'a token'" in said


@pytest.mark.parametrize(
    ("databases", "sentences"),
    [
        (
            {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
            [
                "DATABASES['default'] is of the backend 'django.db.backends.sqlite3', and the lock is a PostgreSQL",
                "Set CELERY_HIGHLANDER_URL to a PostgreSQL, or name the alias of one.",
            ],
        ),
        (
            {"default": {"ENGINE": "django.db.backends.mysql", "NAME": "shop"}},
            ["'default'", "'django.db.backends.mysql'"],  # where its driver is missing Django says so, else we do
        ),
        ({"default": POSTGRESQL}, ["Django cannot use DATABASES['default']", "Please supply the NAME"]),
        ({}, ["'django.db.backends.dummy'", "the lock is a PostgreSQL one"]),
    ],
    ids=["sqlite", "mysql", "no-name", "none"],
)
def test_what_is_no_postgresql_is_a_mistake_of_the_settings_with_a_cure(
    databases: dict[str, Any], sentences: list[str]
) -> None:
    said = told(databases, "target_of_path('celery_highlander.contrib.django:engine')")
    assert said.startswith("ConfigurationError ")
    for sentence in sentences:
        assert sentence in said


def test_an_unknown_alias_and_a_fence_outside_of_a_transaction_are_mistakes() -> None:
    sqlite = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
    assert "DATABASES has no alias 'other'. It has: 'default'." in told(sqlite, "engine('other')")
    assert "fence() outside of a transaction guards nothing." in told(sqlite, "fence(None)")


def test_a_worker_of_a_project_without_postgresql_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "lite_settings.py").write_text(
        "from example_project.django_shop.settings import *\n"
        "DATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}}\n"
    )
    env = {
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
        "DJANGO_SETTINGS_MODULE": "lite_settings",
        "SHOP_SETTINGS": json.dumps({"broker_url": "memory://"}),
    }
    argv = [sys.executable, "-W", "ignore", "-m", "celery", "-A", "example_project.django_shop", "worker", "-P", "solo"]
    done = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert "celery-highlander cannot work: DATABASES['default'] is of the backend" in done.stderr
    assert done.returncode == 78  # EX_CONFIG
