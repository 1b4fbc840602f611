"""A cluster whose runs hold keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.commands import PASSWORD
from tests.integration.keyed import Holder, KeyedCluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.arena.servers import Database, Redis


@pytest.fixture
def keyed(postgres: Database, redis_server: Redis, tmp_path: Path) -> Iterator[KeyedCluster]:
    redis_server.command("flushall")
    Holder(postgres.url()).lose()  # there are tables
    broker = {"broker_url": redis_server.url(), "result_backend": redis_server.url(1)}
    with KeyedCluster(postgres.url(password=PASSWORD), broker, tmp_path) as cluster:
        yield cluster
