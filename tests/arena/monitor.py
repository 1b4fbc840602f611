"""A monitor: receives the events of a cluster."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery import Celery

LIMIT = 60.0


class Monitor:
    """Receives the events of a cluster, as `celery events` does."""

    def __init__(self, app: Celery) -> None:
        self.events: list[dict[str, Any]] = []
        self._app = app
        self._stopped = False
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def _run(self) -> None:
        with self._app.connection_for_read() as connection:
            receiver = self._app.events.Receiver(connection, handlers={"*": self.events.append})
            with receiver.consumer_context(wakeup=False) as (own, _, _):
                self._ready.set()
                while not self._stopped:
                    with contextlib.suppress(TimeoutError):
                        own.drain_events(timeout=0.2)

    def close(self) -> None:
        self._stopped = True
        self._thread.join(LIMIT)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in list(self.events) if event["type"] == kind]

    def has(self, kind: str, task_id: str) -> bool:
        return any(event["uuid"] == task_id for event in self.of(kind))
