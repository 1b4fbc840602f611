"""`celery beat -S highlander` as its operator sees it: banner, refusals, remote control, status."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.arena.beats import BeatCluster
from tests.arena.servers import Database, FilesystemBroker
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.arena.cluster import Worker

pytestmark = pytest.mark.postgres
LIMIT = 60.0
EX_CONFIG = 78
PASSWORD = "s3cret"  # a server that trusts its clients ignores it
ENTRIES = {"often": {"seconds": 0.5}}


@pytest.fixture
def beats(postgres: Database, tmp_path: Path) -> Iterator[Callable[..., BeatCluster]]:
    broker = FilesystemBroker(tmp_path / "broker").conf()
    with contextlib.ExitStack() as stack:

        def make(url: str | None = None, **conf: Any) -> BeatCluster:
            url = postgres.url(password=PASSWORD) if url is None else url
            return stack.enter_context(BeatCluster(url, broker, tmp_path, ENTRIES, conf))

        yield make


def refused(beat: Worker) -> str:
    assert beat.wait(LIMIT) == EX_CONFIG, beat.log
    assert "Traceback" not in beat.log
    assert PASSWORD not in beat.log
    return beat.log.partition("celery-highlander cannot work: ")[2]


@pytest.mark.parametrize(
    ("conf", "told"),
    [
        ({"highlander_beat_missed": "some"}, "highlander_beat_missed = 'some' is none of 'latest', 'all', 'skip'"),
        ({"highlander_beat_missed": {"often": 3}}, "highlander_beat_missed = 3 for the entry 'often' is none of"),
        ({"highlander_beat_grace_time": -1}, "highlander_beat_grace_time = -1 is neither None nor a number"),
        ({"highlander_beat_skeduler": "x"}, "did you mean 'highlander_beat_scheduler'"),
        ({"highlander_queues": ["beat"], "highlander_beat": True}, "there are two singletons of the name 'beat'"),
        ({"highlander_lease_duration": 1.0}, "highlander_lease_duration = 1 is too short"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    beats: Callable[..., BeatCluster], conf: dict[str, Any], told: str
) -> None:
    assert told in refused(beats(**conf).start_beat())


@pytest.mark.slow
def test_a_beat_shows_where_it_stands_and_no_password(beats: Callable[..., BeatCluster]) -> None:
    cluster = beats(highlander_beat_missed={"*": "all", "oftn": "skip"})
    first = cluster.start_beat()
    cluster.active()
    wait_until(lambda: "Sending due task often" in first.log, LIMIT, "a tick")
    second = cluster.start_beat()
    wait_until(lambda: "lock session open" in second.log, LIMIT, "a standby")
    assert "singleton -> beat of 'shop', postgresql+psycopg2://postgres:***@" in first.log
    assert "names 'oftn', which is no entry" in first.log
    assert "psycopg2" in Path(f"/proc/{first.keeper}/maps").read_text()
    assert "psycopg2" not in Path(f"/proc/{first.pid}/maps").read_text()
    assert PASSWORD not in first.log + second.log

    def shown() -> dict[str, Any]:
        done = cluster.command("highlander", "status", "--json")
        (found,) = [entry for entry in json.loads(done.stdout)["singletons"] if entry["name"] == "beat"]
        return dict(found)

    entry = wait_until(lambda: shown() if shown()["standbys"] == 1 else None, LIMIT, "the standby to be counted")
    assert entry["state"] == "leading"
    assert entry["pid"] == first.pid
    assert entry["leader"].startswith(f"beat.{first.pid}@")


@pytest.mark.slow
def test_a_standby_answers_remote_control(beats: Callable[..., BeatCluster]) -> None:
    """It is beside the active one, does not tick, and is alive."""
    cluster = beats()
    active = cluster.start_beat("--enable-remote-control", "-n", "first")
    cluster.active()
    standby = cluster.start_beat("--enable-remote-control", "-n", "second")
    wait_until(lambda: "lock session open" in standby.log, LIMIT, "a standby")

    def answers() -> bool:
        found = cluster.command("inspect", "ping", "--json", "-t", "3").stdout
        return "first" in found and "second" in found and found.count("pong") == 2

    wait_until(answers, LIMIT, "both to answer")
    assert active.is_running
    assert "Sending due task" not in standby.log


def test_a_role_that_may_not_use_the_ledger_is_told_the_sql(
    beats: Callable[..., BeatCluster], postgres: Database
) -> None:
    postgres.execute("create role clerk login")
    try:
        with_all_rights = beats()
        with_all_rights.command("highlander", "migrate")
        postgres.execute(
            "grant select, insert, update, delete on "
            "highlander_singleton, highlander_term, highlander_node, highlander_order to clerk;"
            "grant select on highlander_migration to clerk"
        )
        beat = beats(postgres.url(user="clerk", password=PASSWORD)).start_beat()
        wait_until(lambda: "beat cannot go on" in beat.log, LIMIT, "its complaint")
        (line,) = [line for line in beat.log.splitlines() if "beat cannot go on" in line]
        assert "it lacks select on highlander_entry" in line
        assert "grant select, insert, update, delete on highlander_entry, highlander_tick to <role>" in beat.log
        postgres.execute("grant select, insert, update, delete on highlander_entry, highlander_tick to clerk")
        wait_until(lambda: "Sending due task often" in beat.log, LIMIT, "a tick")
        assert "Traceback" not in beat.log
        beat.close()
    finally:
        postgres.execute("drop owned by clerk")
        postgres.execute("drop role clerk")
