"""Many nodes without workers: `python -m tests.arena.swarm` runs real keepers, several in a process, each on a thread.

Each one has the messages of a worker whose work starts and stops at once, and notes it in a journal. SIGTERM makes all
of its nodes leave in order; SIGKILL ends them all.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery_highlander.clock import boot_time
from celery_highlander.election.keys import lock_key
from celery_highlander.election.lease import Timing
from celery_highlander.keeper import cell, children
from celery_highlander.keeper.loop import Keeper
from celery_highlander.keeper.messages import Channel, ChannelClosedError
from celery_highlander.keeper.victims import hold
from tests.arena import processes
from tests.arena.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from subprocess import Popen

NAMESPACE = "swarm"
_BEAT = 0.01  # seconds, of the loop that plays all workers


class Node:
    """One keeper, and what it believes to be its worker."""

    def __init__(self, url: str, names: Sequence[str], priority: int, journals: Path) -> None:
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        self._journals = journals
        self._pulse_at = 0.0
        self.node = uuid.uuid4().hex[:12]
        self.acting: dict[str, tuple[int, Journal]] = {}
        timing = Timing()
        hello: dict[str, Any] = {
            "node": self.node,
            "worker": f"{self.node}@swarm",
            "cell": cell.create(),
            "address": children.new_address(),
            "timing": {name: getattr(timing, name) for name in timing.__dataclass_fields__},
            "worker_timeout": 30.0,
            "keys": {name: lock_key(NAMESPACE, name) for name in names},
            "namespace": NAMESPACE,
            "schema": "",
            "migrate": True,
            "priority": priority,
            "eligible": True,
            "unmarked": [],
            "target": {"url": url, "connect_args": {}},
            "processes": {},
            "launch": {},
        }
        worker = hold(os.getpid())
        assert worker is not None
        self._keeper = Keeper(Channel(theirs), worker, hello)
        self._names = list(names)
        self._thread = threading.Thread(target=self._keeper.run, args=([],), daemon=True)

    def start(self) -> None:
        """Have the keeper begin."""
        self._channel.send("campaign", names=self._names)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether the keeper has ended."""
        return not self._thread.is_alive()

    def play(self, now: float) -> None:
        """Do what a worker would do at this instant."""
        try:
            if now >= self._pulse_at:
                self._pulse_at = now + 1.0
                self._channel.send("pulse")
            messages = self._channel.receive()
        except ChannelClosedError:
            messages = []
        for message in messages:
            if message["type"] == "elected":
                journal = Journal.open(self._journals, message["name"])
                self.acting[message["name"]] = message["token"], journal
            elif message["type"] == "stop":
                self._stop(message["name"])
        for name, (token, journal) in self.acting.items():
            journal.write(name, self.node, token, "beat")

    def _stop(self, name: str) -> None:
        token, journal = self.acting.pop(name)
        journal.close()
        self._channel.send("work_stopped", name=name, token=token, reason="")

    def leave(self) -> None:
        """Step down from everything; the keeper ends when it has released everything."""
        self._channel.send("withdraw", names=self._names, reason="leaving", rest=None)

    def close(self) -> None:
        """Let the keeper go."""
        self._channel.close()


class Swarm:
    """The process, seen from the test."""

    def __init__(self, url: str, nodes: int, names: Sequence[str], directory: Path, priority: int = 0) -> None:
        self.nodes = nodes
        self.log = directory / f"swarm-{uuid.uuid4().hex[:8]}.log"
        argv = [
            *(sys.executable, "-m", "tests.arena.swarm", "--url", url, "--nodes", str(nodes)),
            *("--names", ",".join(names), "--journals", str(directory / "journals"), "--priority", str(priority)),
        ]
        root = Path(__file__).resolve().parents[2]
        self._process: Popen[bytes] = processes.spawn(argv, log=self.log, cwd=root, env=dict(os.environ))

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it lives."""
        return self._process.poll() is None

    def end(self, number: signal.Signals) -> None:
        """End it, and wait until it is gone."""
        self._process.send_signal(number)
        self._process.wait(60)

    def close(self) -> None:
        """End it at once."""
        if self.is_running:
            self.end(signal.SIGKILL)


def main() -> None:
    """Run nodes until SIGTERM."""
    parser = argparse.ArgumentParser()
    for option in ("--url", "--names", "--journals"):
        parser.add_argument(option, required=True)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--priority", type=int, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    names = options.names.split(",")
    nodes = [Node(options.url, names, options.priority, Path(options.journals)) for _ in range(options.nodes)]
    for node in nodes:
        node.start()
    leaving_at = None
    while not all(node.is_over for node in nodes):
        now = boot_time()
        for node in nodes:
            node.play(now)
        if told and leaving_at is None:
            leaving_at = now
            for node in nodes:
                node.leave()
        elif leaving_at is not None and now > leaving_at + 1.0:
            for node in nodes:
                node.close()
        time.sleep(_BEAT)


if __name__ == "__main__":
    main()
