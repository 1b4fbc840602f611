"""What is published: the wheel, installed into an empty environment."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from typing import TYPE_CHECKING

import pytest

from tests.arena.cluster import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def run(*argv: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(argv, cwd=cwd, env={**clean, **env}, capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dist")
    code = (
        "import hatchling.build, os, sys; os.chdir(sys.argv[1]); "
        "print(hatchling.build.build_wheel(sys.argv[2])); print(hatchling.build.build_sdist(sys.argv[2]))"
    )
    done = run(sys.executable, "-c", code, str(ROOT), str(directory), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (found,) = directory.glob("*.whl")
    assert list(directory.glob("*.tar.gz"))
    return found


def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top.split("-")[0] for top in tops} == {"celery_highlander"}
    assert "celery_highlander/py.typed" in names
    assert "celery_highlander/testing/__init__.py" in names
    assert "celery_highlander/contrib/django.py" in names
    (entries,) = [name for name in names if name.endswith("entry_points.txt")]
    text = zipfile.ZipFile(wheel).read(entries).decode()
    assert "[celery.commands]" in text
    assert "[celery.beat_schedulers]" in text


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_wheel_works_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv/bin/python")
    installed = run(python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", str(wheel), cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    (tmp_path / "shop.py").write_text(
        "from celery import Celery\napp = Celery('shop')\napp.conf.highlander_url = 'postgresql://a@127.0.0.1:1/none'\n"
    )
    celery = str(tmp_path / "venv/bin/celery")
    done = run(celery, "-A", "shop", "highlander", "doctor", cwd=tmp_path)
    assert "settings: singletons: 1" in done.stdout, done.stderr
    assert done.returncode == 1  # there is no such database
    assert "Traceback" not in done.stderr
    help_text = run(celery, "-A", "shop", "worker", "--help", cwd=tmp_path).stdout
    assert "--highlander-priority" in help_text


def test_the_package_itself_imports_nothing_heavy() -> None:
    code = "import sys, celery_highlander; print(*sorted(name for name in sys.modules if '.' not in name))"
    done = run(sys.executable, "-c", code, cwd=ROOT)
    loaded = set(done.stdout.split())
    heavy = {
        "celery",
        "kombu",
        "sqlalchemy",
        "psycopg2",
        "psycopg",
        "rich",
        "matplotlib",
        "prometheus_client",
        "django",
    }
    assert loaded & heavy == set()


def test_the_plugin_in_an_app_loads_nothing_that_only_some_need() -> None:
    code = """
import sys
from celery import Celery
before = set(sys.modules)
from celery_highlander import Highlander
Highlander(Celery("shop"))
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""
    done = run(sys.executable, "-c", code, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert loaded & {"rich", "matplotlib", "prometheus_client", "django", "redis", "psycopg"} == set()
