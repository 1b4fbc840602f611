"""Schedulers that cannot be guarded: said once at start, with the cure, by a beat and by a worker that would run it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.arena.beats import BeatCluster
from tests.arena.servers import FilesystemBroker

if TYPE_CHECKING:
    from pathlib import Path

    from tests.arena.servers import Database

pytestmark = pytest.mark.postgres

LIMIT = 60.0
EX_CONFIG = 78


@pytest.mark.parametrize("runs", ["beat", "worker"])
@pytest.mark.parametrize(
    ("scheduler", "said", "cure"),
    [
        ("redbeat.RedBeatScheduler", "RedBeat elects by itself", "or run RedBeat alone"),
        pytest.param("not_installed:Any", "No module named", "Is the package installed here", marks=pytest.mark.slow),
        pytest.param("celery.app:Celery", "not a subclass of celery.beat.Scheduler", "Name", marks=pytest.mark.slow),
        pytest.param(
            "django_celery_beat.schedulers:DatabaseScheduler", "ImproperlyConfigured", "", marks=pytest.mark.slow
        ),
    ],
)
def test_a_scheduler_that_cannot_be_guarded_is_refused_with_its_cure(
    postgres: Database, tmp_path: Path, runs: str, scheduler: str, said: str, cure: str
) -> None:
    broker = FilesystemBroker(tmp_path / "broker").conf()
    conf = {"highlander_beat_scheduler": scheduler, "highlander_beat": runs == "worker"}
    with BeatCluster(postgres.url(), broker, tmp_path, {}, conf) as cluster:
        refused = cluster.start_beat() if runs == "beat" else cluster.start("-X", "highlander")
        assert refused.wait(LIMIT) == EX_CONFIG, refused.log
        assert "Traceback" not in refused.log
        told = refused.log.partition("celery-highlander cannot work: ")[2]
        assert refused.log.count(f"highlander_beat_scheduler = {scheduler!r}") == 1
        assert said in told
        assert cure in told
