"""The page on testing: its files, put where a user would put them, and run by pytest as a user would."""

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
_FILE = re.compile(r"^```python\n(# (\w+\.py).*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.postgres
def test_every_file_of_the_page_works(tmp_path: Path, postgres: Database) -> None:
    text = (ROOT / PAGE).read_text()
    files = {name: source for source, name in _FILE.findall(text)}
    assert len(files) == text.count("```python"), "a block without a file's name"
    for name, source in files.items():
        (tmp_path / name).write_text(source)
    tests = sum(source.count("\ndef test_") for source in files.values())
    argv = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "-p", "no:xdist"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HIGHLANDER_TEST_URL": postgres.url()}
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{tests} passed" in done.stdout
    assert "skipped" not in done.stdout
