"""The page on testing: its tests, put into a file as a user would, and run by pytest with the plugin."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.docs.pages import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.arena.servers import Database

PAGE = "docs/how-to/test.md"
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHOP = """
from celery import Celery
from celery_highlander import Highlander, SingletonTask

app = Celery("shop", broker="memory://")
app.conf.update(highlander_url="postgresql+psycopg2://app@db/shop", highlander_queues=["ledger"])
Highlander(app)

@app.task(base=SingletonTask, singleton={"unique_on": ["account_id"]})
def sync_account(account_id): ...
"""
CONFTEST = """
import pytest
from shop import app

pytest_plugins = ["celery_highlander.testing.pytest"]

@pytest.fixture
def highlander_app():
    return app
"""


@pytest.mark.postgres
def test_every_test_of_the_page_passes_with_the_plugin(tmp_path: Path, postgres: Database) -> None:
    shown = "\n".join(_BLOCK.findall((ROOT / PAGE).read_text()))
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_shop.py").write_text(f"from shop import app, sync_account\n{shown}")
    argv = [sys.executable, "-m", "pytest", "-q", "-W", "error", *["-p", "no:cacheprovider", "-p", "no:celery"]]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HIGHLANDER_TEST_URL": postgres.url()}
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{shown.count('def test_')} passed" in done.stdout
    assert "skipped" not in done.stdout
