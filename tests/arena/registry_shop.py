"""The arena's shop, with the plugin's metrics among its own, which it serves with prometheus_client."""

from __future__ import annotations

import os

from celery import signals
from prometheus_client import REGISTRY, Counter, start_http_server

from celery_highlander.prometheus import HighlanderCollector
from tests.arena.shop import app

OWN = Counter("shop_starts", "How often the shop was started.")

__all__ = ["app"]


@signals.worker_init.connect(weak=False)
def serve(**_: object) -> None:
    """As documented, and as its author would do anyway."""
    REGISTRY.register(HighlanderCollector(app))
    OWN.inc()
    start_http_server(int(os.environ["HIGHLANDER_ARENA_METRICS_PORT"]), "127.0.0.1")
