"""The nodes of pytest-celery as processes of this machine, in the place of containers; knows of no test."""

from __future__ import annotations

import os
import signal as signals
from typing import TYPE_CHECKING, Any

from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from tests.arena.cluster import Cluster, Worker

PATIENCE = 40.0


class LocalService:
    """A broker or a backend that runs already: what pytest-celery asks of a container."""

    def __init__(self, name: str, url: str) -> None:
        self.name = self.id = name
        self.status = "running"
        self.celeryconfig = {"url": url, "host_url": url}

    def ready(self) -> bool:
        """It was waited for when it was started."""
        return True

    def teardown(self) -> None:
        """It serves other tests too."""


class LocalWorker:
    """A worker of the arena: what pytest-celery asks of a worker's container."""

    id = "arena"  # the host in the worker's node name

    def __init__(self, cluster: Cluster, options: tuple[str, ...]) -> None:
        self._cluster = cluster
        self._options = options
        self._worker = cluster.start(*options)
        self.name = self._worker.name

    @property
    def process(self) -> Worker:
        """The process and its family."""
        return self._worker

    @property
    def status(self) -> str:
        """As Docker says it."""
        return "running" if self._worker.is_running else "exited"

    def worker_name(self) -> str:
        """The part of the node name before the host."""
        return self.name

    def logs(self) -> str:
        """What it has logged."""
        return self._worker.log

    def ready(self) -> bool:
        """Wait until it takes part in elections."""
        log = self._worker
        wait_until(
            lambda: " ready." in log.log and "lock session open" in log.log, PATIENCE, f"{self.name} to be ready"
        )
        return True

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Send a signal to the worker's main process."""
        os.kill(self._worker.pid, getattr(signals, signal) if isinstance(signal, str) else signal)

    def restart(self, **_: Any) -> None:
        """Start a worker of that name again."""
        self._worker.send(signals.SIGTERM)
        self._worker.wait(PATIENCE)
        self._worker = self._cluster.start(*self._options, name=self.name)

    def reload(self) -> None:
        """Nothing is remembered that could be old."""

    def teardown(self) -> None:
        """End it and all that it started."""
        self._worker.close()
