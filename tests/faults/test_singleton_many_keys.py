"""Many keys at once, many runs that wait for one, and sessions that are ended: no two runs of a key, and no leak."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.arena import holders
from tests.arena.cluster import ROOT
from tests.arena.requirements import require
from tests.arena.servers import Postgres
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.fault, pytest.mark.postgres]

LIMIT = 90.0


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    require(Postgres.available())
    with Postgres() as server:
        yield server


class Holders:
    """Some processes that hold keys."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.url = url
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *, keys: int, threads: int, wait: float = 0.5, namespace: str = "shop") -> None:
        words = {"url": self.url, "namespace": namespace, "directory": self.directory}
        words |= {"keys": keys, "threads": threads, "wait": wait}
        argv = [sys.executable, "-m", "tests.arena.holders", *(f"--{name}={word}" for name, word in words.items())]
        with (self.directory / f"log.{len(self.processes)}").open("wb") as log:
            self.processes.append(subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log))

    @property
    def are_done(self) -> bool:
        for process in self.processes:
            assert process.poll() in (None, 0), [path.read_text()[-2000:] for path in self.directory.glob("log.*")]
        return all(process.poll() is not None for process in self.processes)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def people(tmp_path: Path, postgres: Postgres) -> Iterator[Holders]:
    database = postgres.create_database("holders")
    found = Holders(tmp_path, database.url())
    try:
        yield found
    finally:
        found.close()
        postgres.drop_database("holders")


def nothing_held(postgres: Postgres) -> bool:
    """Whether no row and no lock of a run is left."""
    rows = postgres.execute("select name from highlander_run where key <> -1", dbname="holders")
    locks = postgres.execute("select 1 from pg_locks where locktype = 'advisory'")
    return not rows and not locks


def test_10_000_keys_are_held_and_freed_while_sessions_are_ended(people: Holders, postgres: Postgres) -> None:
    for _ in range(2):
        people.start(keys=5_000, threads=20)
    strikes = 0
    while True:
        before = holders.count(people.directory)
        wait_until(
            lambda before=before: people.are_done or holders.count(people.directory) > before + 1_500,  # type: ignore[misc]
            LIMIT,
            "work",
        )
        if people.are_done:
            break
        strikes += postgres.terminate_backends("highlander %") > 0
    assert strikes >= 3
    assert holders.count(people.directory) >= 10_000
    assert holders.overlaps(people.directory) == []
    wait_until(lambda: nothing_held(postgres), LIMIT, "nothing to be held")


def test_1_000_wait_for_one_key_and_each_has_its_turn(people: Holders, postgres: Postgres) -> None:
    for _ in range(2):
        people.start(keys=1, threads=500, wait=LIMIT)
    wait_until(lambda: people.are_done, LIMIT, "all to have had their turn")
    assert holders.count(people.directory) == 1_000
    assert holders.overlaps(people.directory) == []
    wait_until(lambda: nothing_held(postgres), LIMIT, "nothing to be held")
