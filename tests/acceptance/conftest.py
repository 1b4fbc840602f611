"""Workers of the example project's applications."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.arena.cluster import ROOT, Cluster
from tests.arena.processes import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.arena.servers import Database, Redis


class Application(Cluster):
    """Workers of one application."""

    def __init__(self, database: Database, redis: Redis, directory: Path) -> None:
        super().__init__(database.url(), {"broker_url": redis.url()}, directory, pool="prefork")
        self.ports: list[int] = []

    def environment(self, conf: Any = None, env: Any = None) -> dict[str, str]:
        own = {"SHOP_DATABASE_URL": self.url, "SHOP_BROKER_URL": self.conf["broker_url"], "SHOP_BEAT_SECONDS": "0.5"}
        return {**super().environment(conf, env), **own, **(env or {})}

    def serve(self, count: int = 2) -> None:
        """Start workers that answer over HTTP."""
        for _ in range(count):
            self.ports.append(free_port())
            address = f"127.0.0.1:{self.ports[-1]}"
            self.start("--without-mingle", "--without-gossip", "-X", "highlander", "--highlander-http-address", address)

    def python(self, *words: str, env: dict[str, str] | None = None) -> str:
        """Run `python -m …` with the application's environment; what it says."""
        done = subprocess.run(
            [sys.executable, "-m", *words],
            env={**self.environment(), **(env or {})},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def application(postgres: Database, redis_server: Redis, tmp_path: Path) -> Iterator[Callable[[str], Application]]:
    redis_server.command("flushall")
    made: list[Application] = []

    def make(path: str) -> Application:
        kind = type("Kind", (Application,), {"app_path": path})
        made.append(kind(postgres, redis_server, tmp_path))
        return made[-1]

    yield make
    for one in made:
        one.__exit__()
