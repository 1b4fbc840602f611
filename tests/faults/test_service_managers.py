"""A service manager stops or restarts a worker: signals to every process at once, to a pid in a file, or SIGHUP."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from celery_highlander.keeper.children import ADDRESS_VARIABLE
from tests.arena import processes
from tests.arena.cluster import MARK, ROOT, Worker, _with_environment
from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.scenes import PROCESS, QUEUE

if TYPE_CHECKING:
    from tests.arena.cluster import Cluster
    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres]


def send_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@pytest.mark.slow
def test_a_sigterm_to_every_process_at_once_is_a_handover(cluster: MakeCluster) -> None:
    shop = cluster("rabbitmq")
    leader, _ = scenes.leader_and_standby(shop)
    tokens = {singleton: scenes.acts(shop, singleton) for singleton in (PROCESS, QUEUE)}
    send_all([leader.pid, *leader.family], signal.SIGTERM)  # as systemd does with KillMode=control-group
    for singleton, token in tokens.items():
        scenes.acts(shop, singleton, token)
    scenes.nothing_left(leader)
    # Not the time it took: a pool that is being stopped sees the death of a child up to seconds later.
    for singleton, token in tokens.items():
        assert f"stepped down from {singleton!r}, token {token}: worker shutting down" in leader.log
    shop.referee().verdict(PROCESS, QUEUE)


@pytest.mark.slow
def test_a_sigkill_to_every_process_soon_after_leaves_nothing(cluster: MakeCluster) -> None:
    shop = cluster("rabbitmq", processes={PROCESS: "tests.arena.shop:slow_to_stop"})
    leader, _ = scenes.leader_and_standby(shop)
    tokens = {singleton: scenes.acts(shop, singleton) for singleton in (PROCESS, QUEUE)}
    family = [leader.pid, *leader.family]
    send_all(family, signal.SIGTERM)
    wait_until(lambda: "shutdown" in leader.log, scenes.PATIENCE, "the shutdown to begin")
    send_all(family, signal.SIGKILL)
    scenes.nothing_left(leader)
    for singleton, token in tokens.items():
        scenes.acts(shop, singleton, token)
    shop.referee().verdict(PROCESS, QUEUE)


def started_by_script(shop: Cluster) -> Worker:
    """A worker of the command `celery`: one of `python -m celery` cannot start itself again."""
    script = str(Path(sys.executable).with_name("celery"))
    argv = [script, "-A", shop.app_path, "worker", "-n", "w1@arena", "-c", "1", "-l", "INFO", *scenes.QUIET]
    worker = Worker("w1", argv, shop.environment(), shop.directory / "w1.log", ROOT)
    shop.workers.append(worker)
    return worker


def test_a_sighup_restarts_the_worker_and_leaves_nothing_of_the_old_one(cluster: MakeCluster) -> None:
    shop = cluster("redis")
    worker = started_by_script(shop)
    tokens = {PROCESS: scenes.acts(shop, PROCESS)}
    scenes.finishes(shop)
    tokens[QUEUE] = scenes.acts(shop, QUEUE)
    scenes.ready(worker)
    old = worker.family
    worker.send(signal.SIGHUP)
    scenes.acts(shop, PROCESS, tokens[PROCESS])
    scenes.finishes(shop)
    assert shop.leader(QUEUE).pid == worker.pid
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in old), scenes.PATIENCE, "no zombie either")
    shop.referee().verdict(PROCESS, QUEUE)


class Detached:
    """Workers that a command of Celery's starts in the background; they are found by their pid file, and a mark."""

    def __init__(self, shop: Cluster, directory: Path) -> None:
        self.shop = shop
        self.directory = directory
        self.temporary = directory / "tmp"
        self.temporary.mkdir()
        self.mark = f"{directory}/detached"

    def celery(self, *words: str) -> None:
        """Run `celery …`; it has to succeed."""
        env = {**self.shop.environment(), MARK: self.mark, "TMPDIR": str(self.temporary)}
        argv = [sys.executable, "-m", "celery", *words]
        subprocess.run(argv, env=env, cwd=ROOT, check=True, timeout=60, capture_output=True)

    @property
    def pid(self) -> int:
        """The worker's pid, once it has written it."""
        path = self.directory / "w1.pid"
        return int(wait_until(lambda: path.read_text().strip() if path.exists() else "", scenes.PATIENCE, "a pid file"))

    @property
    def family(self) -> list[int]:
        return _with_environment(f"{MARK}={self.mark}")

    def leads(self) -> list[str]:
        """Wait until it leads; return the addresses of its keeper."""
        wait_until(lambda: self.shop.acting().get(PROCESS, (0, 0))[0] == self.pid, scenes.PATIENCE, "a leader")
        scenes.acts(self.shop, PROCESS)
        scenes.finishes(self.shop)
        assert self.shop.acting()[QUEUE][0] == self.pid
        environments = [Path(f"/proc/{pid}/environ").read_bytes().decode() for pid in self.family]
        prefix = f"{ADDRESS_VARIABLE}=@"
        entries = {entry for environment in environments for entry in environment.split("\0")}
        return [entry.removeprefix(prefix) for entry in entries if entry.startswith(prefix)]

    def left_nothing(self, addresses: list[str]) -> None:
        """Wait until nothing is left: no process, socket, or file."""
        wait_until(lambda: not self.family, scenes.PATIENCE, "nothing to be left")
        assert addresses
        sockets = Path("/proc/net/unix").read_text()
        assert [address for address in addresses if address in sockets] == []
        assert list(self.temporary.iterdir()) == []
        assert not (self.directory / "w1.pid").exists()

    def close(self) -> None:
        for pid in self.family:
            processes.send(pid, signal.SIGKILL)


@pytest.mark.parametrize("how", ["detach", pytest.param("multi", marks=pytest.mark.slow)])
def test_a_worker_in_the_background_is_the_one_of_its_pid_file_and_leaves_nothing(
    cluster: MakeCluster, tmp_path: Path, how: str
) -> None:
    shop = cluster("redis")
    worker = Detached(shop, tmp_path)
    app = ("-A", shop.app_path)
    files = (f"--pidfile={tmp_path}/%n.pid", f"--logfile={tmp_path}/%n.log")
    options = (*scenes.QUIET, "--concurrency=2", "--loglevel=INFO", *files)
    try:
        if how == "detach":
            worker.celery(*app, "worker", "-n", "w1@arena", "--detach", *options)
        else:
            worker.celery("multi", "start", "w1@arena", *app, *options)
        addresses = worker.leads()
        if how == "detach":
            processes.send(worker.pid, signal.SIGTERM)
        else:
            worker.celery("multi", "stopwait", "w1@arena", *app, *files)
        worker.left_nothing(addresses)
        shop.referee().verdict(PROCESS, QUEUE)
        assert shop.acting() == {}
    finally:
        worker.close()
