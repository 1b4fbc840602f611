"""What is built: a wheel and an sdist with the right things in them; the wheel works where nothing else is there."""

from __future__ import annotations

import configparser
import email
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from celery_highlander import __version__
from tests.arena.cluster import ROOT

if TYPE_CHECKING:
    from tests.arena.servers import Database

UV = Path(sys.executable).with_name("uv")


def run(*argv: str | Path, cwd: Path = ROOT, timeout: float = 100) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HIGHLANDER"))}
    done = subprocess.run(
        [*map(str, argv)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", directory)
    return directory


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob(f"celery_highlander-{__version__}-py3-none-any.whl")
    return found


def test_the_wheel_has_all_of_the_package_and_nothing_else(wheel: Path) -> None:
    package = ROOT / "celery_highlander"
    sources = {
        str(path.relative_to(ROOT)) for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert "celery_highlander/py.typed" in names
    assert "celery_highlander/testing/pytest.py" in names
    inside = {name for name in names if not name.startswith(f"celery_highlander-{__version__}.dist-info/")}
    assert inside == sources


def test_the_wheel_says_what_it_is_and_is_found_by_celery(wheel: Path) -> None:
    information = f"celery_highlander-{__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        metadata = email.message_from_bytes(archive.read(f"{information}/METADATA"))
        entries = configparser.ConfigParser()
        entries.read_string(archive.read(f"{information}/entry_points.txt").decode())
        assert f"{information}/licenses/LICENSE" in archive.namelist()
    assert metadata["Name"] == "celery-highlander"
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "BSD-3-Clause"
    needs = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(need.partition(">")[0].lower() for need in needs) == ["celery", "psycopg2-binary", "sqlalchemy"]
    assert {section: dict(entries[section]) for section in entries.sections()} == {
        "celery.commands": {"highlander": "celery_highlander.cli:highlander"},
        "celery.beat_schedulers": {"highlander": "celery_highlander.beat.scheduler:HighlanderScheduler"},
    }


def test_the_sdist_has_what_building_and_testing_need(built: Path) -> None:
    (path,) = built.glob(f"celery_highlander-{__version__}.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("pyproject.toml", "README.md", "LICENSE", "Makefile", "noxfile.py", "tests/conftest.py"):
        assert name in names
    assert not any("__pycache__" in name or name.startswith((".venv", "reports", ".git/")) for name in names)


@pytest.mark.postgres
def test_the_wheel_works_where_nothing_else_is_installed(wheel: Path, postgres: Database, tmp_path: Path) -> None:
    (tmp_path / "proj.py").write_text(
        "from celery import Celery\n"
        "from celery_highlander import Highlander\n"
        "app = Celery('proj', broker='memory://')\n"
        f"app.conf.highlander_url = {postgres.url()!r}\n"
        "Highlander(app)\n"
    )
    venv = tmp_path / "venv"
    run(UV, "venv", "--quiet", "--python", sys.executable, venv)
    run(UV, "pip", "install", "--quiet", "--python", venv / "bin/python", wheel)
    celery = venv / "bin/celery"
    assert "migrate" in run(celery, "-A", "proj", "highlander", "--help", cwd=tmp_path)
    told = run(celery, "-A", "proj", "highlander", "doctor", cwd=tmp_path)
    assert "PostgreSQL" in told
    where = run(venv / "bin/python", "-c", "import celery_highlander as c; print(c.__file__)", cwd=tmp_path)
    assert str(venv) in where


def test_importing_the_package_adds_one_module_to_what_celery_loads() -> None:
    code = """
import sys, celery
before = set(sys.modules)
import celery_highlander
print(sorted(name for name in set(sys.modules) - before if name.partition(".")[0] not in sys.stdlib_module_names))
"""
    assert run(sys.executable, "-c", code).strip() == "['celery_highlander']"
