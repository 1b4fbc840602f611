"""Clusters of beats: real `celery beat -S highlander` processes, and workers that run what they send."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, ClassVar

from tests.arena import executions
from tests.arena.cluster import ROOT, Cluster, Worker

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.arena.executions import Execution

BEAT = "beat"


class BeatCluster(Cluster):
    """Beats and workers of one app.

    Args:
        url: The database.
        broker: Celery configuration with at least `broker_url`.
        directory: Where logs and the executions go.
        entries: The schedule: by name `{"seconds": 1.0}` or `{"crontab": {"minute": "*/5"}}`, and more (beat_shop.py).
        conf: Further configuration.
    """

    app_path: ClassVar[str] = "tests.arena.beat_shop"

    def __init__(
        self,
        url: str,
        broker: Mapping[str, Any],
        directory: Path,
        entries: Mapping[str, Mapping[str, Any]],
        conf: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(url, broker, directory, {"task_create_missing_queues": True, **(conf or {})})
        self.entries = dict(entries)

    def environment(
        self, conf: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """As a cluster's, with the entries."""
        return super().environment(conf, {"HIGHLANDER_ARENA_ENTRIES": json.dumps(self.entries), **(env or {})})

    def start_beat(
        self,
        *options: str,
        conf: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        scheduler: str = "highlander",
    ) -> Worker:
        """Start a beat."""
        name = f"b{next(self._numbers)}"
        argv = [sys.executable, "-m", "celery", "-A", self.app_path, "beat", "-S", scheduler, "-l", "INFO", *options]
        beat = Worker(name, argv, self.environment(conf, env), self.directory / f"{name}.log", ROOT)
        self.workers.append(beat)
        return beat

    def start_consumer(self, *options: str, **more: Any) -> Worker:
        """Start a worker that runs what the beats send."""
        return self.start("-Q", "ticks", "-X", "highlander", *options, **more)

    def active(self, other_than: int | None = None, timeout: float = 30.0) -> Worker:
        """Wait for an active beat, and return it (or the worker that it runs beside)."""
        return self.leader(BEAT, other_than, timeout)

    def runs(self) -> list[Execution]:
        """Every run so far."""
        return executions.read(self.journals)
