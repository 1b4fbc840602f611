"""Something that is no message arrives on the channel between a leading worker and its keeper."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.arena import processes
from tests.faults import scenes
from tests.faults.scenes import PROCESS, QUEUE

if TYPE_CHECKING:
    from tests.arena.cluster import Worker
    from tests.faults.conftest import MakeCluster

_PIDFD_GETFD = 438
LEASE = 3.0  # of the arena's TIMELY settings


def _can_take_descriptors() -> bool:
    pidfd = getattr(os, "pidfd_open", lambda _: -1)(os.getpid())
    return pidfd >= 0 and ctypes.CDLL(None).syscall(_PIDFD_GETFD, pidfd, 0, 0) >= 0


pytestmark = [
    pytest.mark.fault,
    pytest.mark.postgres,
    pytest.mark.skipif(not _can_take_descriptors(), reason="needs root and Linux 5.6, to write to another's socket"),
]


def taken(pid: int, descriptor: int) -> socket.socket:
    """A duplicate of another process' socket."""
    pidfd = os.pidfd_open(pid)
    found = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, pidfd, descriptor, 0)
    os.close(pidfd)
    return socket.socket(fileno=found)


def keepers_end(worker: Worker) -> tuple[int, int]:
    """Pid of the keeper, and its descriptor of the channel."""
    return worker.keeper, int(Path(f"/proc/{worker.keeper}/cmdline").read_bytes().split(b"\0")[-2])


def workers_end(worker: Worker) -> tuple[int, int]:
    """Pid of the worker, and its descriptor of the channel: the peer of its keeper's, as `ss` knows it."""
    keeper, descriptor = keepers_end(worker)
    inode = str(Path(f"/proc/{keeper}/fd/{descriptor}").readlink())[len("socket:[") : -1]
    lines = subprocess.run(["ss", "-xaH"], capture_output=True, text=True, check=True).stdout.splitlines()
    (peer,) = [line.split()[7] for line in lines if line.split()[5] == inode]
    for entry in Path(f"/proc/{worker.pid}/fd").iterdir():
        if str(entry.readlink()) == f"socket:[{peer}]":
            return worker.pid, int(entry.name)
    raise AssertionError(f"{worker.name} has no end of the channel to its keeper")


@pytest.mark.parametrize("hears", [pytest.param("worker", marks=pytest.mark.slow), "keeper"])
def test_a_node_in_which_nonsense_is_heard_stops_its_work_and_goes_on_with_another_keeper(
    cluster: MakeCluster, hears: str
) -> None:
    shop = cluster("rabbitmq")
    leader, standby = scenes.leader_and_standby(shop)
    tokens = {singleton: scenes.acts(shop, singleton) for singleton in (PROCESS, QUEUE)}
    old = [leader.keeper, *leader.singleton_processes]
    with taken(*(keepers_end if hears == "worker" else workers_end)(leader)) as sock:
        sock.send(b'{"type": 1}\n\xff\n')
    for singleton, token in tokens.items():
        scenes.acts(shop, singleton, token)
        assert scenes.gap(shop, singleton, token) < LEASE + 4.0
    scenes.all_dead(old)
    assert leader.is_running
    assert leader.keeper not in old
    assert standby.is_running
    assert not any(map(processes.is_alive, old))
    assert "nonsense" in leader.log
    shop.referee().verdict(PROCESS, QUEUE)
