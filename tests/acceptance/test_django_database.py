"""`celery_highlander.contrib.django`: which databases it takes, and what it says of the others."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

from tests.arena.cluster import ROOT


def told(databases: str, code: str) -> str:
    source = f"""
    import django
    from django.conf import settings
    settings.configure(DATABASES={databases})
    django.setup()
    from celery_highlander import HighlanderError
    from celery_highlander.contrib.django import engine, fence
    try:
        {code}
    except HighlanderError as error:
        print("error:", error)
    """
    done = subprocess.run(
        [sys.executable, "-c", dedent(source)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


POSTGRESQL = (
    "{'default': {'ENGINE': 'django.db.backends.postgresql', 'NAME': 'shop', 'USER': 'app', 'PASSWORD': 's3cret',"
    " 'HOST': 'db', 'PORT': '5433', 'OPTIONS': {'sslmode': 'require', 'pool': True}}}"
)


def test_host_and_options_are_taken_and_the_pool_is_not() -> None:
    said = told(POSTGRESQL, "e = engine(); print(repr(e.url), e.dialect.create_connect_args(e.url)[1], type(e.pool))")
    assert "app:***@db:5433/shop" in said
    assert "NullPool" in said
    from_target = (
        "from celery_highlander.worker.targets import target_of_engine; print(target_of_engine(engine()).connect_args)"
    )
    said = told(POSTGRESQL, from_target)
    assert "sslmode" in said
    assert "'pool'" not in said


def test_another_backend_and_an_unknown_alias_are_refused_with_a_cure() -> None:
    sqlite = "{'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}}"
    said = told(sqlite, "engine()")
    assert "is of the backend 'django.db.backends.sqlite3', and the lock is a PostgreSQL one" in said
    assert "CELERY_HIGHLANDER_URL" in said
    assert "DATABASES has no alias 'other'. It has: 'default'." in told(sqlite, "engine('other')")


def test_a_fence_outside_of_a_transaction_is_a_mistake() -> None:
    sqlite = "{'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}}"
    assert "fence() outside of a transaction guards nothing. Call it within" in told(sqlite, "fence(None)")
