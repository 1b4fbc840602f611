"""How a bug is planted: in a copy of the package in a directory of its own, where the arena's workers then find it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.faults.planted.bugs import Bug

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = "celery_highlander"


class BarrenError(AssertionError):
    """The text that a bug changes is not there (exactly once): the list has to follow the code."""


def plant(bug: Bug, directory: Path) -> None:
    """Make the copy with the bug in it.

    Raises:
        BarrenError: The bug does not fit the code any more.
    """
    shutil.copytree(ROOT / PACKAGE, directory / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    (directory / "tests").symlink_to(ROOT / "tests")
    for change in bug.changes:
        path = directory / PACKAGE / change.file
        text = path.read_text()
        if text.count(change.old) != 1:
            raise BarrenError(f"{bug.name}: {change.file} has {text.count(change.old)} times {change.old!r}")
        path.write_text(text.replace(change.old, change.new))


def is_found(bug: Bug, directory: Path) -> tuple[bool, str]:
    """Whether the bug's test goes red with it, and what the test said."""
    plant(bug, directory)
    argv = [sys.executable, "-m", "pytest", f"tests/faults/{bug.test}", "-m", "", "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        argv,
        env={**os.environ, "HIGHLANDER_ARENA_ROOT": str(directory)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode == 1, done.stdout
