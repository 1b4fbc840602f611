"""The blocks of the pages on singleton tasks: those that are left behind, those that come in, and what they promise."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING, ClassVar

import pytest

from tests.arena.run_cluster import RunCluster
from tests.docs.pages import AFTER, BEFORE, GUIDES, HAPPENS, MODULES, ROOT, blocks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.arena.servers import Postgres, Redis

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

PAGES = [
    "README.md",
    "docs/explanation/singleton-tasks.md",
    "docs/explanation/singleton-tasks-peers.md",
    *GUIDES.values(),
]


class Pages(RunCluster):
    """A worker of the pages' app."""

    app_path: ClassVar[str] = "tests.docs.shop"


@pytest.fixture(scope="module")
def worker(postgres_server: Postgres, redis_server: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    database = postgres_server.create_database("pages")
    urls = {"broker_url": redis_server.url(), "result_backend": redis_server.url(db=1)}
    with Pages(database.url(), urls, tmp_path_factory.mktemp("pages")) as made:
        made.start_node("one", concurrency=6)
        yield made
    redis_server.command("FLUSHALL")
    database.drop()


def run(module: str, *words: str, env: Mapping[str, str] | None = None) -> list[str]:
    argv = [sys.executable, "-m", module, *words]
    done = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split()


def declared(page: str, kind: str) -> list[str]:
    sources = "\n".join(block.source for block in blocks(page) if block.kind == kind)
    return sorted(re.findall(r"^@.*\ndef (\w+)\(", sources, re.MULTILINE))


@pytest.mark.parametrize("module", GUIDES)
def test_what_is_left_behind_works_and_each_of_its_tasks_has_a_successor(module: str, redis_server: Redis) -> None:
    tasks = run("tests.docs.peers", module, redis_server.url(db=2))
    assert tasks
    assert [task.removeprefix(f"{module}.") for task in tasks] == declared(GUIDES[module], BEFORE)
    assert set(declared(GUIDES[module], BEFORE)) <= set(declared(GUIDES[module], AFTER))


@pytest.mark.parametrize("module", MODULES)
def test_what_comes_in_does_what_the_page_says(module: str, worker: Pages) -> None:
    lengths = len(worker.workers[0].log)
    kinds = [block.kind for block in blocks(MODULES[module])]
    assert AFTER in kinds
    try:
        ran = run("tests.docs.shop", module, env=worker.environment())
    finally:
        print(worker.workers[0].log[lengths:])
    assert len(ran) == kinds.count(HAPPENS)
    assert module not in GUIDES or ran


def _tests() -> Iterator[str]:
    for path in (ROOT / "tests").rglob("*.py"):
        yield path.stem
        yield from re.findall(r"^ *def (test_\w+)", path.read_text(), re.MULTILINE)


def _named(page: str) -> set[str]:
    text = (ROOT / page).read_text()
    if page.endswith("-peers.md"):  # in whose first column stand the tests of others
        text = "\n".join(line.split(" | ")[-1] for line in text.splitlines())
    return {*re.findall(r"\btest_\w+", text)}


def test_every_test_that_a_page_names_is_there() -> None:
    named = {page: _named(page) for page in PAGES}
    assert len(named["docs/explanation/singleton-tasks-peers.md"]) > 30
    assert {name for names in named.values() for name in names} - {*_tests()} == set()
