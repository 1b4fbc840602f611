"""The database role loses its rights under a leader and its standby, and gets them back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults import scenes, troubles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.arena.servers import Database
    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres]


@pytest.fixture
def postgres() -> Iterator[Database]:
    with troubles.own_database() as database:
        yield database


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "told"),
    [
        ("update on highlander_singleton, highlander_term", "it lacks update on highlander_singleton"),
        pytest.param("select on highlander_migration", "permission denied for table", marks=pytest.mark.slow),
        pytest.param("connect on database shop", "permission denied for database", marks=pytest.mark.slow),
    ],
)
def test_nobody_acts_until_the_role_has_its_rights_back(
    cluster: MakeCluster, postgres: Database, right: str, told: str
) -> None:
    shop = cluster("redis", conf={"highlander_url": troubles.url(postgres)})
    troubles.grant_role(postgres)
    scenes.leader_and_standby(shop)
    trouble = troubles.Trouble(shop, postgres.server)
    postgres.execute(f"revoke {right} from {troubles.ROLE}, public")
    if not right.startswith("update"):  # a session that is open needs that right no more
        assert postgres.server.terminate_backends("highlander %") == 2
    trouble.tells(told)
    trouble.lasts(9.0)
    postgres.execute(f"grant {right} to {troubles.ROLE}")
    trouble.is_followed_by_a_new_term()
