"""The database is dropped under a leader and its standby, and made anew: empty."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from celery_highlander.store import migrations
from tests.faults import scenes, troubles
from tests.faults.scenes import PROCESS, QUEUE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.arena.servers import Database
    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres]


@pytest.fixture
def postgres() -> Iterator[Database]:
    with troubles.own_database() as database:
        yield database


def create_again(database: Database) -> None:
    database.server.execute(f'create database "{database.name}" owner {troubles.ROLE}')


@pytest.mark.slow
def test_workers_make_the_tables_again_and_go_on_with_higher_tokens(cluster: MakeCluster, postgres: Database) -> None:
    shop = cluster("redis", conf={"highlander_url": troubles.url(postgres)})
    troubles.grant_role(postgres)
    scenes.leader_and_standby(shop)
    trouble = troubles.Trouble(shop, postgres.server)
    postgres.drop()
    trouble.tells("does not exist")
    trouble.lasts(9.0)
    create_again(postgres)
    trouble.is_followed_by_a_new_term()
    assert postgres.execute("select max(version) from highlander_migration") == [(migrations.VERSION,)]


@pytest.mark.slow
def test_nobody_acts_beside_the_old_leader_when_the_database_is_there_again_at_once(
    cluster: MakeCluster, postgres: Database
) -> None:
    # The old one's work lives on for the whole drain, long after the tables are there again.
    lasting = {"highlander_lease_duration": 8.0, "highlander_drain_timeout": 5.0}
    conf = {"highlander_url": troubles.url(postgres), **lasting}
    shop = cluster("redis", conf=conf, processes={PROCESS: "tests.arena.shop:stubborn"})
    troubles.grant_role(postgres)
    workers = scenes.leader_and_standby(shop)
    queue, process = shop.latest(QUEUE)[1], shop.latest(PROCESS)[1]
    postgres.drop()
    create_again(postgres)
    scenes.acts(shop, PROCESS, process)
    scenes.acts(shop, QUEUE, queue)
    scenes.finishes(shop)
    shop.referee().verdict(QUEUE, PROCESS)
    assert all(worker.is_running for worker in workers)
