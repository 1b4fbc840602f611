"""The worker is PID 1, as it often is in a container: it inherits every orphan, and its death is everybody's."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.arena import families, processes
from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.scenes import PROCESS

if TYPE_CHECKING:
    from tests.arena.cluster import Cluster, Worker
    from tests.faults.conftest import MakeCluster

CONTAINER = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
PATRIARCH = {PROCESS: "tests.arena.families:patriarch"}


def _has_containers() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*CONTAINER, "true"], capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.fault,
    pytest.mark.postgres,
    pytest.mark.skipif(not _has_containers(), reason="needs root, and PID namespaces (unshare of util-linux)"),
]

LEASE = 3.0  # of the arena's TIMELY settings


def contained_leader_and_standby(shop: Cluster) -> tuple[Worker, int]:
    """Start a leader in a container, and a standby outside; return the leader, and its PID 1 as seen from here."""
    leader = shop.start(*scenes.QUIET, prefix=CONTAINER)
    scenes.acts(shop, PROCESS)
    (init,) = [pid for pid in processes.descendants(leader.pid) if _parent(pid) == leader.pid]
    assert shop.acting()[PROCESS][0] == 1
    scenes.ready(leader, shop.start(*scenes.QUIET))
    return leader, init


def _parent(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0  # it lived for a moment only
    return int(stat.rpartition(")")[2].split()[1])


def zombies(parent: int) -> list[int]:
    """The dead children that a process has not reaped."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, its_parent = entry.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state == "Z" and int(its_parent) == parent:
            found.append(int(entry.parent.name))
    return found


def named(init: int, word: bytes) -> int:
    """The first process below `init` with this in its command line."""
    return next(pid for pid in processes.descendants(init) if word in Path(f"/proc/{pid}/cmdline").read_bytes())


def test_a_shutdown_hands_over_and_empties_the_container(cluster: MakeCluster) -> None:
    shop = cluster("redis", processes=PATRIARCH)
    leader, init = contained_leader_and_standby(shop)
    wait_until(lambda: len(families.writers(shop.journals, PROCESS)) >= 4, scenes.PATIENCE, "a family at work")
    token = scenes.acts(shop, PROCESS)
    os.kill(init, signal.SIGTERM)
    scenes.acts(shop, PROCESS, token)
    scenes.nothing_left(leader)
    shop.referee().verdict(PROCESS)
    assert scenes.gap(shop, PROCESS, token) < LEASE / 2


@pytest.mark.slow
def test_a_killed_container_is_taken_over_within_the_lease(cluster: MakeCluster) -> None:
    shop = cluster("redis", processes=PATRIARCH)
    leader, init = contained_leader_and_standby(shop)
    token = scenes.acts(shop, PROCESS)
    os.kill(init, signal.SIGKILL)  # the kernel kills its keeper, too, so nobody leaves a mark
    scenes.acts(shop, PROCESS, token)
    scenes.nothing_left(leader)
    shop.referee().verdict(PROCESS)
    assert scenes.gap(shop, PROCESS, token) < LEASE + 4.0


@pytest.mark.slow
def test_the_worker_reaps_what_its_dead_keeper_leaves_to_it(cluster: MakeCluster) -> None:
    shop = cluster("redis", processes=PATRIARCH)
    worker = shop.start(*scenes.QUIET, prefix=CONTAINER)
    first = scenes.acts(shop, PROCESS)
    scenes.ready(worker)
    (init,) = [pid for pid in processes.descendants(worker.pid) if _parent(pid) == worker.pid]
    launcher = named(init, b"celery_highlander.worker.launcher")
    process = shop.latest(PROCESS)[0]
    os.kill(launcher, signal.SIGKILL)  # its keeper reaps the orphans
    wait_until(lambda: shop.latest(PROCESS)[0] != process, scenes.PATIENCE, "another process")
    keeper = named(init, b"celery_highlander.keeper")
    wait_until(lambda: not zombies(keeper), scenes.PATIENCE, "no zombie of the keeper")
    os.kill(keeper, signal.SIGKILL)  # its worker does
    scenes.acts(shop, PROCESS, first)
    assert zombies(init) == []
    assert worker.is_running
    assert shop.referee().overlaps(PROCESS) == []
