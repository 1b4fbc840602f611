"""Sentry's check-ins for entries of a beat: the same from our schedulers as from Celery's own."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from tests.arena.beats import BeatCluster
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.arena.servers import Database, Redis

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

LIMIT = 30.0
WATCHED = {"interval", "crontab"}
GUARDING = {"highlander_beat_scheduler": "celery.beat:Scheduler"}


class SentryCluster(BeatCluster):
    """Beats and workers that report to Sentry."""

    app_path: ClassVar[str] = "tests.arena.sentry_shop"


def check_ins(cluster: BeatCluster, pid: int | None = None) -> list[dict[str, Any]]:
    """The check-ins so far, of all processes or of one."""
    paths = cluster.journals.glob(f"check-ins.{pid or '*'}")
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def seen_of_a_beat(cluster: BeatCluster, **options: Any) -> dict[str, dict[str, Any]]:
    """Let a beat tick until each watched entry was seen to run; return by name what Sentry was told of it."""
    beat = cluster.start_beat(**options)

    def told() -> dict[str, dict[str, Any]] | None:
        begun = {entry["check_in_id"]: entry for entry in check_ins(cluster, beat.pid)}
        assert all(entry["status"] == "in_progress" for entry in begun.values())
        ended = {entry["check_in_id"]: entry for entry in check_ins(cluster) if entry["status"] != "in_progress"}
        found = {
            ended[id_]["monitor_slug"]: {
                "begun": begun[id_]["monitor_config"],
                "ended": ended[id_]["monitor_config"],
                "status": ended[id_]["status"],
                "has a duration": ended[id_]["duration"] is not None,
            }
            for id_ in begun.keys() & ended.keys()
        }
        return found if found.keys() >= WATCHED else None

    found = wait_until(told, LIMIT, "check-ins of every watched entry")
    runs = [run for run in cluster.runs() if run.entry == "unwatched"]
    wait_until(lambda: len([run for run in cluster.runs() if run.entry == "unwatched"]) > len(runs), LIMIT, "a run")
    beat.send(signal.SIGTERM)
    assert beat.wait() == 0
    assert found.keys() == WATCHED
    assert len({entry["check_in_id"] for entry in check_ins(cluster, beat.pid)}) == len(check_ins(cluster, beat.pid))
    return found


@pytest.mark.slow
def test_sentry_is_told_the_same_by_our_beat_as_by_celerys_own(
    postgres: Database, redis_server: Redis, tmp_path: Path
) -> None:
    broker = {"broker_url": redis_server.url()}
    with SentryCluster(postgres.url(), broker, tmp_path, {}, {"result_expires": None}) as cluster:
        cluster.start_consumer()
        plain = seen_of_a_beat(cluster, scheduler="celery.beat:Scheduler")
        assert {entry["status"] for entry in plain.values()} == {"ok"}
        assert plain["interval"]["begun"]["schedule"] == {"type": "interval", "value": 1, "unit": "minute"}
        assert plain["crontab"]["begun"]["schedule"] == {"type": "crontab", "value": "30 7 * * 1"}
        assert seen_of_a_beat(cluster) == plain
        assert seen_of_a_beat(cluster, conf=GUARDING) == plain
    redis_server.command("FLUSHALL")
