"""The commands of the pages, typed one after the other against real servers, with real workers."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import psycopg2
import pytest

from tests.arena.requirements import require
from tests.arena.servers import Postgres, free_port
from tests.arena.waiting import wait_until
from tests.docs.fences import PAGES, ROOT, TUTORIAL, fences
from tests.docs.terminal import Terminal, addresses, first_missing

if TYPE_CHECKING:
    from pathlib import Path

    from tests.arena.servers import Database, Redis

ELSEWHERE = {
    "README.md": "tests/integration/test_demo.py runs the demonstration; the other commands are those of docs/index.md"
}

WITH_COMMANDS = [
    page
    for page in PAGES
    if any(fence.language == "console" and fence.is_run for fence in fences(page)) and page not in ELSEWHERE
]
LONG = [page for page in WITH_COMMANDS if page != TUTORIAL]


def follow(page: str, database: Database, redis: Redis, directory: Path) -> Terminal:
    with closing(psycopg2.connect(database.url(None))) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        for fence in fences(page):
            if fence.language == "sql" and fence.is_run and "create table" in fence.source:
                cursor.execute(fence.source)
    with Terminal(directory, addresses(database.url(), redis.url(), redis.url(db=1))) as terminal:
        terminal.follow(page)
    return terminal


def test_there_are_pages_with_commands() -> None:
    assert TUTORIAL in WITH_COMMANDS
    assert len(LONG) >= 10


@pytest.mark.slow
@pytest.mark.postgres
def test_the_tutorial_can_be_followed_line_by_line(tmp_path: Path) -> None:
    require(Postgres.available())
    port = free_port()
    server = "docs/tutorial/postgres.py"
    words = {f"../../{server}": f"{ROOT / server} --port {port}", "54329": str(port)}
    with Terminal(tmp_path, words) as terminal:
        terminal.follow(TUTORIAL)
        terminal.type_until('test -z "$(jobs -rp)"', [])  # its last commands have ended everything
    tokens = [int(line.split()[-1]) for line in (tmp_path / "prices.txt").read_text().splitlines()]
    assert tokens == sorted(tokens)
    assert len({*tokens}) >= 3


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.redis
@pytest.mark.parametrize("page", LONG)
def test_a_page_can_be_followed(page: str, postgres: Database, redis_server: Redis, tmp_path: Path) -> None:
    try:
        follow(page, postgres, redis_server, tmp_path)
    finally:
        redis_server.command("FLUSHALL")
    nobody = "select count(*) from pg_stat_activity where datname = current_database() "
    nobody += "and application_name like 'highlander%'"
    with closing(psycopg2.connect(postgres.url(None))) as connection, connection.cursor() as cursor:

        def gone() -> bool:
            cursor.execute(nobody)
            return cursor.fetchone() == (0,)

        wait_until(gone, 30, "every lock session to be closed")


@pytest.mark.parametrize(
    ("expected", "printed", "missing"),
    [
        (["a 2.7 s 0"], ["a 11.2 s 0"], None),
        (["a 2.7 s 0"], ["a 2.7 s 1"], "a 2.7 s 0"),
        (["one@localhost leads"], ["two@localhost leads"], "one@localhost leads"),
        (["one@localhost leads it."], ["two@localhost leads it."], None),
        (["x  celery@..."], ["y", "x celery@host 1 2"], None),
        (["first", "second"], ["second", "first"], "second"),
        (["...", "last"], ["a", "last"], None),
    ],
)
def test_what_is_printed_is_compared_with_what_the_page_says(
    expected: list[str], printed: list[str], missing: str | None
) -> None:
    assert first_missing(expected, printed) == missing
