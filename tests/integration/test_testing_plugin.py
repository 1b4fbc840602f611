"""The pytest plugin for users, and the PostgreSQL that it starts where they name none."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import psycopg2
import pytest

from celery_highlander.testing import embedded_postgres, postgres_url
from celery_highlander.testing.database import URL_VARIABLE
from tests.arena.requirements import require
from tests.arena.servers import Postgres

if TYPE_CHECKING:
    from pathlib import Path


def test_the_plugin_is_loaded_by_those_alone_who_ask_for_it(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("import sys\ndef test_it():\n    assert 'celery' not in sys.modules\n")
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:celery", str(tmp_path)]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_a_database_of_the_users_own_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    assert postgres_url() is None
    monkeypatch.setenv(URL_VARIABLE, "postgresql+psycopg2://app@db/shop")
    assert postgres_url() == "postgresql+psycopg2://app@db/shop"


@pytest.mark.postgres
def test_a_started_postgresql_answers_and_is_gone_afterwards() -> None:
    require(Postgres.available())
    with embedded_postgres() as url:
        plain = url.replace("+psycopg2", "")
        connection = psycopg2.connect(plain)
        with connection.cursor() as cursor:
            cursor.execute("select pg_is_in_recovery()")
            assert cursor.fetchone() == (False,)
        connection.close()
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(plain)
