"""Another user of the machine connects to a keeper's socket, and talks to it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from celery_highlander.keeper.children import ADDRESS_VARIABLE
from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.scenes import PROCESS

if TYPE_CHECKING:
    from tests.faults.conftest import MakeCluster

pytestmark = [
    pytest.mark.fault,
    pytest.mark.postgres,
    pytest.mark.skipif(
        "sys.platform != 'linux' or os.geteuid() != 0 or not __import__('shutil').which('setpriv')",
        reason="needs root, to be somebody else (setpriv of util-linux)",
    ),
]

# Connects 300 times; says what a pool child or a worker would say, and nonsense; counts what it was given.
STRANGER = r"""
import os, random, socket, sys
given = 0
for number in range(300):
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(5)
    connection.connect("\0" + sys.argv[1])
    try:
        connection.sendall(random.choice([b"", b'{"type": "campaign", "names": []}\n', random.randbytes(1000)]))
        data, descriptors, _, _ = socket.recv_fds(connection, 16, 4)
        given += len(data) + len(descriptors)
    except ConnectionError:
        pass
    connection.close()
print(os.geteuid(), given)
"""


def test_a_stranger_gets_no_cell_and_changes_nothing(cluster: MakeCluster) -> None:
    shop = cluster("redis")
    worker = shop.start(*scenes.QUIET)
    token = scenes.acts(shop, PROCESS)
    scenes.ready(worker)
    environ = Path(f"/proc/{worker.keeper}/environ").read_bytes().decode().split("\0")
    (address,) = [entry.partition("=@")[2] for entry in environ if entry.startswith(ADDRESS_VARIABLE)]
    base = Path(sys.base_prefix) / "bin" / "python3"
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin") or str(base)
    argv = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", python, "-I", "-c", STRANGER, address]
    keeper = worker.keeper
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, cwd="/")
    assert done.stdout.split() == ["65534", "0"], done.stderr
    heartbeats = shop.heartbeats(PROCESS)
    wait_until(lambda: shop.heartbeats(PROCESS) > heartbeats + 1, scenes.PATIENCE, "heartbeats as before")
    scenes.finishes(shop)
    assert shop.latest(PROCESS)[1] == token
    assert worker.keeper == keeper
    assert len(list(Path(f"/proc/{keeper}/fd").iterdir())) < 60
    shop.referee().verdict(PROCESS)
