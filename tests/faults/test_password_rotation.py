"""The password of the database role is rotated under a leader and its standby."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.arena import rotating
from tests.arena.requirements import require
from tests.arena.servers import Database, Postgres
from tests.arena.waiting import wait_until
from tests.faults import scenes, troubles
from tests.faults.scenes import PROCESS, QUEUE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.arena.cluster import Cluster
    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres]

NEXT_PASSWORD = "correct horse/battery"


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    require(Postgres.available())
    with Postgres(settings=troubles.SETTINGS) as server:
        hba = server.data / "pg_hba.conf"
        hba.write_text(f"host all {troubles.ROLE} 0.0.0.0/0 scram-sha-256\n{hba.read_text()}")
        server.execute("select pg_reload_conf()")
        yield server


@pytest.fixture
def postgres(own_server: Postgres) -> Database:
    database = own_server.create_database("shop")
    troubles.make_role(database)
    return database


def rotate(database: Database, password: str) -> None:
    database.execute(f"alter role {troubles.ROLE} password '{password}'")


def goes_on(cluster: Cluster) -> None:
    """Whoever leads is confirmed by further heartbeats, under the same tokens."""
    tokens = cluster.latest(QUEUE)[1], cluster.latest(PROCESS)[1]
    before = cluster.heartbeats(PROCESS)
    wait_until(lambda: cluster.heartbeats(PROCESS) > before + 3, scenes.PATIENCE, "three heartbeats")
    assert (cluster.latest(QUEUE)[1], cluster.latest(PROCESS)[1]) == tokens


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["psycopg2", pytest.param("psycopg", marks=pytest.mark.slow)])
def test_running_sessions_go_on_and_a_lost_one_says_once_that_the_password_is_wrong(
    cluster: MakeCluster, postgres: Database, driver: str
) -> None:
    shop = cluster("redis", conf={"highlander_url": troubles.url(postgres, driver)})
    troubles.grant_role(postgres)
    scenes.leader_and_standby(shop)
    rotate(postgres, NEXT_PASSWORD)
    goes_on(shop)
    trouble = troubles.Trouble(shop, postgres.server)
    assert postgres.server.terminate_backends("highlander %") == 2
    trouble.tells("password authentication failed")
    trouble.lasts(9.0)
    rotate(postgres, troubles.PASSWORD)
    trouble.is_followed_by_a_new_term()


def test_an_engine_that_knows_the_new_password_is_asked_for_it(
    cluster: MakeCluster, postgres: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = tmp_path / "vault"
    vault.write_text(troubles.PASSWORD)
    monkeypatch.setenv(rotating.VAULT_VARIABLE, str(vault))
    monkeypatch.setenv(rotating.URL_VARIABLE, postgres.url(user=troubles.ROLE))
    shop = cluster("redis", conf={"highlander_url": "", "highlander_engine": "tests.arena.rotating:engine"})
    troubles.grant_role(postgres)
    workers = scenes.leader_and_standby(shop)
    rotate(postgres, NEXT_PASSWORD)
    vault.write_text(NEXT_PASSWORD)
    goes_on(shop)
    queue, process = shop.latest(QUEUE)[1], shop.latest(PROCESS)[1]
    assert postgres.server.terminate_backends("highlander %") == 2
    scenes.acts(shop, PROCESS, process)
    scenes.acts(shop, QUEUE, queue)
    scenes.finishes(shop)
    shop.referee().verdict(QUEUE, PROCESS)
    for worker in workers:
        assert worker.is_running
        assert "password authentication failed" not in worker.log
        assert troubles.PASSWORD not in worker.log
        assert NEXT_PASSWORD not in worker.log
