"""The demonstration as a user runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.arena.cluster import ROOT
from tests.arena.processes import descendants, is_alive
from tests.arena.requirements import require
from tests.arena.servers import Postgres, Redis

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 150.0


@pytest.fixture
def scratch() -> Iterator[Path]:
    # Short, for the sockets below it, and open to the user that PostgreSQL runs as.
    with tempfile.TemporaryDirectory(prefix="hd-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def start(scratch: Path, hide: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "example_project.demo"],
        cwd=ROOT,
        env={**os.environ, "HIGHLANDER_ARENA_HIDE": hide, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def played(scratch: Path, hide: str = "") -> str:
    demo = start(scratch, hide)
    try:
        output, _ = demo.communicate(timeout=SECONDS)
    finally:
        demo.kill()
    assert demo.returncode == 0, output
    assert list(scratch.iterdir()) == []
    return output


@pytest.mark.timeout(SECONDS + 30)
@pytest.mark.slow
def test_it_passes_on_a_machine_without_servers_and_says_what_its_broker_cannot_do(scratch: Path) -> None:
    reason = Postgres.available()
    require(reason)
    output = played(scratch, hide="postgresql,redis,rabbitmq")
    assert "plain files" in output
    assert "Every promise was kept." in output


@pytest.mark.slow
@pytest.mark.redis
@pytest.mark.timeout(SECONDS + 30)
def test_it_passes_with_redis(scratch: Path) -> None:
    require(Postgres.available() or Redis.available())
    assert "Every promise was kept." in played(scratch)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_ends_what_it_started_and_returns_130(scratch: Path, number: signal.Signals) -> None:
    require(Postgres.available())
    demo = start(scratch)
    assert demo.stdout is not None
    try:
        for line in demo.stdout:
            if "lease" in line and "first leader" in line:
                break
        started = descendants(demo.pid)
        demo.send_signal(number)
        output, _ = demo.communicate(timeout=60)
    finally:
        demo.kill()
    assert demo.returncode == 130, output
    assert started
    assert not [pid for pid in started if is_alive(pid)]
    assert list(scratch.iterdir()) == []
