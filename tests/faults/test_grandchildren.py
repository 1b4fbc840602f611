"""A singleton process has descendants that do not want to die, and somebody on the way from the keeper to them dies.

The descendants write under the name of the process that started them, so the referee sees every one that outlives it.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.arena import families, processes
from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.scenes import PROCESS

if TYPE_CHECKING:
    from tests.arena.cluster import Cluster, Worker
    from tests.faults.conftest import MakeCluster

pytestmark = [
    pytest.mark.fault,
    pytest.mark.postgres,
    pytest.mark.skipif("sys.platform != 'linux'", reason="orphans are adopted on Linux only"),
]

LEASE = 3.0  # of the arena's TIMELY settings
PATRIARCH = {PROCESS: "tests.arena.families:patriarch"}
FAMILY = 5  # the process, and four descendants
BOMB = {PROCESS: "tests.arena.families:bomb"}


def family_at_work(shop: Cluster, leader: Worker, size: int = FAMILY) -> set[int]:
    """Wait until that many processes of the singleton have written; return their pids."""
    token = scenes.acts(shop, PROCESS)
    scenes.ready(leader)
    wait_until(lambda: len(families.writers(shop.journals, PROCESS)) >= size, scenes.PATIENCE, f"{size} at work")
    assert shop.latest(PROCESS)[1] == token
    return families.writers(shop.journals, PROCESS)


def supervisor_of(leader: Worker) -> int:
    """The supervisor of the singleton process: the launcher's only child."""
    launcher, supervisor, *_ = leader.singleton_processes
    assert supervisor in processes.descendants(launcher)
    return supervisor


def test_a_shutdown_hands_over_when_every_descendant_is_dead(cluster: MakeCluster) -> None:
    shop = cluster("redis", processes=PATRIARCH)
    leader = shop.start(*scenes.QUIET)
    old = family_at_work(shop, leader)
    standby = shop.start(*scenes.QUIET)
    scenes.ready(standby)
    token = shop.latest(PROCESS)[1]
    leader.send(signal.SIGTERM)
    scenes.acts(shop, PROCESS, token)
    assert not any(map(processes.is_alive, old))
    scenes.nothing_left(leader)
    shop.referee().verdict(PROCESS)
    assert scenes.gap(shop, PROCESS, token) < LEASE / 2


@pytest.mark.parametrize(
    "who",
    [
        "process",
        "supervisor",
        "keeper",
        pytest.param("launcher", marks=pytest.mark.slow),
        pytest.param("worker", marks=pytest.mark.slow),
    ],
)
def test_no_descendant_lives_when_the_process_starts_again(cluster: MakeCluster, who: str) -> None:
    shop = cluster("redis", processes=PATRIARCH)
    leader = shop.start(*scenes.QUIET)
    old = family_at_work(shop, leader)
    owner = shop.latest(PROCESS)[0]
    if who == "worker":
        scenes.ready(shop.start(*scenes.QUIET))
    pid = {
        "process": lambda: int(owner),
        "supervisor": lambda: supervisor_of(leader),
        "launcher": lambda: leader.singleton_processes[0],
        "keeper": lambda: leader.keeper,
        "worker": lambda: leader.pid,
    }[who]()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: shop.latest(PROCESS)[0] != owner, scenes.PATIENCE, "another process at work")
    assert not any(map(processes.is_alive, old))
    assert shop.referee().overlaps(PROCESS) == []
    assert leader.is_running == (who != "worker")


def test_descendants_that_start_ever_more_are_all_dead_before_the_next_leader_begins(cluster: MakeCluster) -> None:
    shop = cluster("redis", processes=BOMB)
    leader = shop.start(*scenes.QUIET)
    old = family_at_work(shop, leader, families.BOMB_SIZE)
    standby = shop.start(*scenes.QUIET)
    scenes.ready(standby)
    token = shop.latest(PROCESS)[1]
    leader.send(signal.SIGTERM)
    scenes.acts(shop, PROCESS, token)
    assert not any(map(processes.is_alive, old))
    scenes.nothing_left(leader)
    shop.referee().verdict(PROCESS)
