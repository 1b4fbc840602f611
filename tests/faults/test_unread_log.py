"""Nobody reads a worker's log any more: what it writes to its standard error waits for ever, in whatever process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from typing import TYPE_CHECKING

import pytest

from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.scenes import PROCESS, QUEUE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.faults.conftest import MakeCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres]

INTO_THE_PIPE = 'exec "$0" "$@" >"$ARENA_LOG" 2>&1'


class Reader:
    """Copies a pipe into a file until it is told to stop, and then holds the pipe open."""

    def __init__(self, directory: Path) -> None:
        self.pipe = directory / "log"
        os.mkfifo(self.pipe)
        self.copy = directory / "copy"
        self._source = os.open(self.pipe, os.O_RDWR)  # so that it never ends
        fcntl.fcntl(self._source, fcntl.F_SETPIPE_SZ, 4096)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self.copy.open("ab") as copy:
            while not self._stopped.is_set():
                copy.write(os.read(self._source, 65536))
                copy.flush()

    def stop(self) -> None:
        """Read no more, and fill the pipe, so that the next word has no room."""
        self._stopped.set()
        os.write(self._source, b"\n")
        self._thread.join()
        os.set_blocking(self._source, False)
        for size in (1024, 1):
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(self._source, b"." * size)

    def close(self) -> None:
        """Let go of the pipe."""
        os.close(self._source)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    reader.close()


@pytest.mark.parametrize("pool", ["prefork", pytest.param("threads", marks=pytest.mark.slow)])
def test_its_singletons_go_to_another_node_and_it_is_killed(cluster: MakeCluster, reader: Reader, pool: str) -> None:
    shop = cluster("rabbitmq", pool=pool)
    leader = shop.start(
        *(*scenes.QUIET, "-X", QUEUE, "--highlander-priority", "1"),
        prefix=("sh", "-c", INTO_THE_PIPE),
        env={"ARENA_LOG": str(reader.pipe)},
        concurrency=2,
    )
    shop.leader(PROCESS, timeout=scenes.PATIENCE)
    standby = shop.start(*scenes.QUIET, "-X", QUEUE, concurrency=2)
    scenes.ready(standby)
    shop.send(0, seconds=600)
    tokens = {name: scenes.acts(shop, name) for name in (QUEUE, PROCESS)}
    reader.stop()
    shop.send(1)  # it says that it received this one, and gets no further
    for name, token in tokens.items():
        scenes.acts(shop, name, token)
    wait_until(lambda: not leader.is_running, scenes.PATIENCE, "the worker that hangs to be dead")
    scenes.finishes(shop)
    shop.referee().verdict(QUEUE, PROCESS)
