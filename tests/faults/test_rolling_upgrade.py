"""Two releases side by side: the tables are of an older version than a node's release, or of a newer one."""

from __future__ import annotations

import shutil
import signal
from typing import TYPE_CHECKING, Any

import pytest

from celery_highlander.store import migrations
from tests.arena.cluster import ROOT
from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.scenes import PROCESS, QUEUE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.arena.cluster import Cluster, Worker
    from tests.arena.servers import Database
    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres]

NEXT = migrations.VERSION + 1
ADDITIONS = """
MIGRATIONS = (
    *MIGRATIONS,
    (
        "alter table {prefix}term add column note text not null default ''",
        "alter table {prefix}singleton add column beats_since timestamptz default now()",
        "create table {prefix}further (key bigint primary key)",
    ),
)
VERSION = len(MIGRATIONS)
"""


def next_release(directory: Path) -> tuple[str, ...]:
    """Make a copy of the package with one more migration; return the argv prefix that runs a worker of it."""
    package = directory / "celery_highlander"
    shutil.copytree(ROOT / "celery_highlander", package, ignore=shutil.ignore_patterns("__pycache__"))
    (directory / "tests").symlink_to(ROOT / "tests")
    path = package / "store" / "migrations.py"
    head = "VERSION = len(MIGRATIONS)\n"
    text = path.read_text()
    assert text.count(head) == 1
    path.write_text(text.replace(head, ADDITIONS))
    return ("env", "--chdir", str(directory), f"PYTHONPATH={directory}")


def start(cluster: Cluster, prefix: tuple[str, ...] = (), **conf: Any) -> Worker:
    return cluster.start(*scenes.QUIET, "-X", QUEUE, conf=conf, prefix=prefix)


def version(database: Database) -> int:
    return int(database.execute("select max(version) from highlander_migration")[0][0])


def test_the_old_release_goes_on_while_the_new_one_migrates_and_they_take_over_from_each_other(
    cluster: MakeCluster, postgres: Database, tmp_path: Path
) -> None:
    shop = cluster("redis")
    old = start(shop)
    process, queue = scenes.acts(shop, PROCESS), shop.leader(QUEUE)
    scenes.finishes(shop)
    assert queue is old
    assert version(postgres) == migrations.VERSION

    new = start(shop, next_release(tmp_path / "next"), highlander_priority=-1)
    scenes.ready(new)
    assert version(postgres) == NEXT
    before = shop.heartbeats(PROCESS)
    wait_until(lambda: shop.heartbeats(PROCESS) > before + 2, scenes.PATIENCE, "heartbeats on the newer tables")
    scenes.finishes(shop)
    assert shop.token(PROCESS) == process  # the old one leads on

    old.send(signal.SIGTERM)
    process = scenes.acts(shop, PROCESS, process)
    assert shop.leader(PROCESS) is new
    scenes.finishes(shop)
    again = start(shop)
    scenes.ready(again)
    new.send(signal.SIGTERM)
    scenes.acts(shop, PROCESS, process)
    assert shop.leader(QUEUE) is again
    scenes.finishes(shop)
    assert version(postgres) == NEXT
    shop.referee().verdict(QUEUE, PROCESS)


def test_a_new_release_that_may_not_migrate_says_what_to_do_and_leaves_the_old_one_alone(
    cluster: MakeCluster, postgres: Database, tmp_path: Path
) -> None:
    shop = cluster("redis")
    start(shop)
    process = scenes.acts(shop, PROCESS)
    new = start(shop, next_release(tmp_path / "next"), highlander_migrate=False)
    assert new.wait() != 0
    assert f"are of version {migrations.VERSION}, and this release needs {NEXT}" in new.log
    assert "celery -A proj highlander migrate" in new.log
    assert version(postgres) == migrations.VERSION
    scenes.finishes(shop)
    assert shop.token(PROCESS) == process
    shop.referee().verdict(QUEUE, PROCESS)
