"""Every block of every page: run, parsed, or marked with the reason why not."""

from __future__ import annotations

import configparser
import json
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg2
import pytest
import yaml

from celery_highlander.store import migrations
from tests.docs.fences import HAPPENS, PAGES, ROOT, Fence, commands, fences
from tests.docs.pages import GUIDES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.arena.servers import Database, Postgres

ALL = [fence for page in PAGES for fence in fences(page)]

DIRECTIVES = ("{toctree}", "{eval-rst}", "{from-code}")
"""What Sphinx builds, or says what is wrong with."""

IN_GUIDES = [*GUIDES.values()]
"""The pages whose Python blocks `test_guides` runs, with a worker."""


def _ini(source: str) -> None:
    configparser.ConfigParser(strict=False, interpolation=None).read_string(source)


def _toml(source: str) -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none")
    tomllib.loads(source)


PARSERS: dict[str, Callable[[str], object]] = {
    "yaml": lambda source: list(yaml.safe_load_all(source)),
    "ini": _ini,
    "toml": _toml,
    "json": json.loads,
}
RUN = ("python", "console", "sql")
SHOWN = ("text",)


def test_every_block_is_run_or_parsed_or_says_why_not() -> None:
    strange = [
        f"{fence.place}: {fence.language or 'no language'}"
        for fence in ALL
        if fence.language not in (*RUN, *PARSERS, *SHOWN, *DIRECTIVES) and fence.is_run
    ]
    assert not strange
    assert not [fence.place for fence in ALL if fence.reason and len(fence.reason) < 10]
    assert not [fence.place for fence in ALL if fence.reason and fence.language in (*SHOWN, *DIRECTIVES)]


def test_most_blocks_are_run() -> None:
    kept_back = [fence for fence in ALL if not fence.is_run]
    assert len(kept_back) < len([fence for fence in ALL if fence.language in RUN]) / 4


@pytest.mark.parametrize("fence", [f for f in ALL if f.language in PARSERS and f.is_run], ids=lambda fence: fence.place)
def test_a_block_in_a_format_can_be_parsed(fence: Fence) -> None:
    PARSERS[fence.language](fence.source)


def test_python_blocks_can_be_run_and_their_settings_work() -> None:
    pages = [page for page in PAGES if page not in IN_GUIDES]
    argv = [sys.executable, "-W", "ignore", "-m", "tests.docs.declare", *pages]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ran = {page: int(count) for page, count in (line.split() for line in done.stdout.splitlines())}
    expected = {
        page: sum(f.language == "python" and f.is_run and f.first_line != HAPPENS for f in fences(page))
        for page in pages
    }
    assert ran == expected
    assert sum(ran.values()) > 40


@pytest.fixture
def database(postgres_server: Postgres) -> Iterator[Database]:
    made = postgres_server.create_database("pages_sql")
    yield made
    made.drop()
    with closing(psycopg2.connect(postgres_server.url(None))) as connection, connection.cursor() as cursor:
        cursor.execute("drop role if exists app; drop role if exists watcher")
        connection.commit()


@pytest.mark.postgres
def test_sql_blocks_can_be_run(database: Database) -> None:
    sources = [(fence.place, fence.source) for fence in ALL if fence.language == "sql" and fence.is_run]
    assert len(sources) >= 6
    with closing(psycopg2.connect(database.url(None))) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute(migrations.script(""))
        for place, source in sources:
            cursor.execute(f"-- {place}\n{source}")  # which shows in the error, should there be one
        cursor.execute(migrations.grants("", "app"))
        cursor.execute("select has_table_privilege('watcher', 'highlander_term', 'select')")
        assert cursor.fetchone() == (True,)


def test_commands_of_console_blocks_are_ones_that_there_are() -> None:
    from celery_highlander.cli import highlander

    named = {
        command.partition(" highlander ")[2].split()[0]
        for fence in ALL
        if fence.language == "console"
        for command, _ in commands(fence)
        if command.startswith("celery ")
        and " highlander " in command
        and " -X " not in command
        and "inspect" not in command
    }
    assert named - {*highlander.commands} == set()
    assert {"status", "doctor", "history", "step-down", "pause", "resume"} <= named
