"""Workers of the example project's applications."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from tests.arena.cluster import ROOT, TIMELY, Cluster
from tests.arena.processes import free_port
from tests.arena.servers import RabbitMQ, Redis

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.arena.cluster import Worker
    from tests.arena.servers import Database


class Application(Cluster):
    """Workers of one application, in the environment that its README asks for."""

    def __init__(self, database: Database, broker: Redis | RabbitMQ, directory: Path) -> None:
        super().__init__(database.url(), {"broker_url": broker.url()}, directory, pool="prefork")
        self.ports: list[int] = []

    def environment(
        self, conf: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        own = {
            "SHOP_DATABASE_URL": self.url,
            "SHOP_BROKER_URL": self.conf["broker_url"],
            "SHOP_BEAT_SECONDS": "1",
            "SHOP_SETTINGS": json.dumps(TIMELY),
        }
        return {**super().environment(conf, env), **own, **(env or {})}

    def serve(self, count: int = 2) -> list[Worker]:
        """Start workers that answer over HTTP, as the deployments' do."""
        for _ in range(count):
            self.ports.append(free_port())
            self.start("-X", "highlander", env=self.listening(self.ports[-1]))
        return self.workers[-count:]

    def listening(self, port: int) -> dict[str, str]:
        """The environment of a worker that answers on that port, and of a probe that asks it."""
        return {"SHOP_SETTINGS": json.dumps({**TIMELY, "highlander_http_address": f":{port}"})}

    def python(self, *words: str, env: Mapping[str, str] | None = None) -> str:
        """Run `python …` with the application's environment; return what it says."""
        return self.run([sys.executable, *words], env)

    def run(self, argv: list[str], env: Mapping[str, str] | None = None) -> str:
        """Run a command with the application's environment; return what it says."""
        environment = self.environment(env=env)
        done = subprocess.run(argv, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def logs(self) -> str:
        """What all its workers have logged so far."""
        return "\n".join(worker.log for worker in self.workers)


class MakeApplication(Protocol):
    """The `application` fixture."""

    def __call__(self, path: str, broker: str = "redis") -> Application:
        """Make the application that `celery -A path` runs, without workers."""


@pytest.fixture
def application(request: pytest.FixtureRequest, postgres: Database, tmp_path: Path) -> Iterator[MakeApplication]:
    made: list[Application] = []

    def make(path: str, broker: str = "redis") -> Application:
        server: Redis | RabbitMQ = request.getfixturevalue(f"{broker}_server")
        if isinstance(server, Redis):
            server.command("flushall")
        kind = type("Kind", (Application,), {"app_path": path})
        made.append(kind(postgres, server, tmp_path))
        return made[-1]

    yield make
    for one in made:
        one.__exit__()
        for worker in one.workers:  # pytest shows it of a test that fails
            print(f"--- {worker.name}\n" + "\n".join(worker.log.splitlines()[-40:]))
