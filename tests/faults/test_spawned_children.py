"""The pool starts its children as fresh interpreters (`worker_pool_start_method = "spawn"`), and the worker is killed.

Such a child inherits nothing: it has to find the keeper by itself, also where the plugin is installed by a setting.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.scenes import QUEUE

if TYPE_CHECKING:
    from tests.faults.conftest import MakeCluster

pytestmark = [
    pytest.mark.fault,
    pytest.mark.postgres,
    pytest.mark.pool("prefork", reason="it has no pool children"),
]

SPAWN = {"worker_pool_start_method": "spawn", "include": ["tests.arena.shop"]}


@pytest.mark.parametrize(
    "installed_in_code",
    [pytest.param(True, id="in-code", marks=pytest.mark.slow), pytest.param(False, id="by-setting")],
)
def test_a_spawned_child_knows_its_term_and_dies_with_its_worker(
    cluster: MakeCluster, *, installed_in_code: bool
) -> None:
    shop = cluster("redis", processes={}, conf=SPAWN)
    env = {"HIGHLANDER_ARENA_INSTALL": "1" if installed_in_code else "0"}
    leader = shop.start(*scenes.QUIET, env=env)
    shop.leader(QUEUE, timeout=scenes.PATIENCE)
    shop.send(1, seconds=600)
    token = scenes.acts(shop, QUEUE)  # it knows its term, or it would not say so
    standby = shop.start(*scenes.QUIET, env=env)
    scenes.ready(leader, standby)
    assert any(b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in leader.family)
    leader.send(signal.SIGKILL)
    wait_until(lambda: shop.token(QUEUE) > token, scenes.PATIENCE, "another term")
    scenes.acts(shop, QUEUE, token)
    scenes.nothing_left(leader)
    shop.referee().verdict(QUEUE)
