"""The server's disk is full: that of the tables, or that of the write-ahead log."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import psycopg2
import pytest

from tests.arena import postgres_binaries, processes
from tests.arena.requirements import require
from tests.arena.servers import Database, Postgres
from tests.arena.waiting import wait_until
from tests.faults import scenes, troubles
from tests.faults.scenes import PROCESS, QUEUE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres]

PAGE = 8192


@contextlib.contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """Mount a file system of that size, which the server may write to."""
    directory = processes.make_directory("disk")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "arena", directory], check=True)
    try:
        user = postgres_binaries.account()
        if user:
            user.own(directory)
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


@pytest.fixture
def disk() -> Iterator[Path]:
    require(None if os.geteuid() == 0 else "a small file system can be mounted by root only")
    with small_disk(64) as directory:
        yield directory


@pytest.fixture
def own_server(disk: Path) -> Iterator[Postgres]:  # noqa: ARG001  # unmounted only after the server has ended
    require(Postgres.available())
    with Postgres(settings={**troubles.SETTINGS, "autovacuum": "off"}) as server:
        yield server


@pytest.fixture
def postgres(own_server: Postgres) -> Database:
    database = own_server.create_database("shop")
    troubles.make_role(database)
    return database


def fill(database: Database, disk: Path) -> None:
    """Take every page of the disk, and every row that would still fit into a page of the terms."""
    database.execute("vacuum full highlander_term")  # no dead rows whose space could be used again
    database.execute("create table ballast (filler text) tablespace small")
    database.execute("alter table ballast alter filler set storage external")  # as long as it says
    for rows in (1000, 1):
        with contextlib.suppress(psycopg2.errors.DiskFull):
            while True:
                filler = "select repeat('x', 1900) from generate_series(1, %s)"
                database.execute(f"insert into ballast {filler}", rows)
    with contextlib.suppress(psycopg2.errors.DiskFull):
        for token in range(1000):
            row = "values (1, %s, '', '', 0, 0)"
            database.execute(f"insert into highlander_term (key, token, node, worker, pid, lease) {row}", token)
    assert shutil.disk_usage(disk).free < PAGE


@pytest.mark.slow
def test_nobody_acts_while_no_term_can_be_recorded(cluster: MakeCluster, postgres: Database, disk: Path) -> None:
    shop = cluster("redis", conf={"highlander_url": troubles.url(postgres)})
    troubles.grant_role(postgres)
    postgres.execute(f"create tablespace small location '{disk}'")
    for table in ("highlander_singleton", "highlander_term"):
        postgres.execute(f"alter table {table} set tablespace small")
    scenes.leader_and_standby(shop)
    fill(postgres, disk)
    before = shop.heartbeats(PROCESS), shop.latest(PROCESS)[1], shop.latest(QUEUE)[1]
    wait_until(lambda: shop.heartbeats(PROCESS) > before[0] + 3, scenes.PATIENCE, "heartbeats on a full disk")
    assert (shop.latest(PROCESS)[1], shop.latest(QUEUE)[1]) == before[1:]

    trouble = troubles.Trouble(shop, postgres.server)
    assert postgres.server.terminate_backends("highlander %") == 2
    trouble.tells("No space left on device")
    trouble.lasts(9.0)
    postgres.execute("drop table ballast")
    trouble.is_followed_by_a_new_term()


@pytest.mark.slow
def test_a_leader_whose_heartbeats_cannot_be_written_is_lost_in_time(
    cluster: MakeCluster, postgres: Database, disk: Path
) -> None:
    server = postgres.server
    server.stop()
    log_files = server.data / "pg_wal"
    shutil.copytree(log_files, disk / "pg_wal")
    shutil.rmtree(log_files)
    log_files.symlink_to(disk / "pg_wal")
    if server.user:
        server.user.own(disk)
    server.start()
    shop = cluster("redis", conf={"highlander_url": troubles.url(postgres)})
    troubles.grant_role(postgres)
    scenes.leader_and_standby(shop)

    trouble = troubles.Trouble(shop, server)
    with contextlib.suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(PAGE))
    with contextlib.suppress(psycopg2.Error):  # the server panics when it cannot write its log
        while True:
            postgres.execute("select pg_switch_wal() from pg_logical_emit_message(true, 'arena', repeat('x', 100000))")
    trouble.begins()
    trouble.lasts(9.0)
    (disk / "ballast").unlink()
    if not server.is_running:
        server.start()
    trouble.is_followed_by_a_new_term()
