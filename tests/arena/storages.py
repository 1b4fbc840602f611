"""Where schedulers other than ours keep their entries: made, edited and read from outside."""

from __future__ import annotations

import contextlib
import json
import shelve
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy.orm import Session
from sqlalchemy_celery_beat.models import IntervalSchedule, Period, PeriodicTask
from sqlalchemy_celery_beat.session import SessionManager

from tests.arena.cluster import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.arena.beats import BeatCluster


class Storage(Protocol):
    """Of one kind of scheduler."""

    @property
    def scheduler(self) -> str:
        """The scheduler's dotted path."""

    @property
    def struck(self) -> str:
        """That of the one which strikes itself."""

    def conf(self, url: str) -> dict[str, Any]:
        """Further configuration."""

    def put(self, cluster: BeatCluster, entries: Mapping[str, float]) -> None:
        """Write entries with their intervals; one of 0 s is disabled."""

    def counts(self, cluster: BeatCluster) -> dict[str, int]:
        """How often each entry was sent, as the storage says."""


@dataclass(frozen=True)
class FileStorage:
    """The file of Celery's PersistentScheduler; its entries are the configuration's."""

    scheduler: str = "celery.beat:PersistentScheduler"
    struck: str = "tests.arena.struck_schedulers:Persistent"

    def conf(self, url: str) -> dict[str, Any]:  # noqa: ARG002  # as the others
        return {}

    def put(self, cluster: BeatCluster, entries: Mapping[str, float]) -> None:
        cluster.entries = {name: {"seconds": seconds} for name, seconds in entries.items()}

    def path(self, cluster: BeatCluster) -> Path:
        return cluster.directory / "schedule"

    def counts(self, cluster: BeatCluster) -> dict[str, int]:
        """Read a copy; nothing is returned where it is of no use, since the file was being written to."""
        with tempfile.TemporaryDirectory() as copy:
            for path in cluster.directory.glob("schedule*"):
                with contextlib.suppress(OSError):
                    shutil.copy(path, copy)
            with contextlib.suppress(Exception), shelve.open(str(Path(copy) / "schedule"), "r") as store:
                return {name: entry.total_run_count for name, entry in store["entries"].items()}
        return {}


@dataclass(frozen=True)
class DatabaseStorage:
    """Tables in the test's database, each write to which is put on record."""

    scheduler: str
    struck: str
    table: str

    def conf(self, url: str) -> dict[str, Any]:
        return {"beat_dburi": url}

    def put(self, cluster: BeatCluster, entries: Mapping[str, float]) -> None:
        (self._put_with_django if self.table.startswith("django") else self._put)(cluster, entries)

    def _put_with_django(self, cluster: BeatCluster, entries: Mapping[str, float]) -> None:
        argv = [sys.executable, "-m", "tests.arena.django_entries", json.dumps(entries)]
        subprocess.run(argv, env=cluster.environment(), cwd=ROOT, check=True, timeout=60)

    def _put(self, cluster: BeatCluster, entries: Mapping[str, float]) -> None:
        sessions = SessionManager()
        engine, _ = sessions.create_session(cluster.url)
        sessions.prepare_models(engine)
        with Session(engine) as session, session.begin():
            for name, seconds in entries.items():
                entry = session.query(PeriodicTask).filter_by(name=name).first()
                if entry is None:
                    entry = PeriodicTask(name=name, task="run", args=json.dumps([name]), queue="ticks")
                if seconds:
                    interval = IntervalSchedule(every=seconds, period=Period.SECONDS)
                    session.add(interval)
                    session.flush()  # the entry needs its id
                    entry.schedule_model = interval
                entry.enabled = bool(seconds)
                session.add(entry)
        engine.dispose()

    def record_writes(self, cluster: BeatCluster) -> None:
        """Have each update of an entry written down, with the name of who made it."""
        cluster.query("create table written (id serial, name text, count int, at timestamptz, by text)")
        cluster.query(
            "create function write_down() returns trigger language plpgsql as $$ begin"
            " insert into written (name, count, at, by) values"
            " (new.name, new.total_run_count, new.last_run_at, current_setting('application_name')); return new; end $$"
        )
        cluster.query(
            f"create trigger recorded before update on {self.table} for each row execute function write_down()"
        )

    def counts(self, cluster: BeatCluster) -> dict[str, int]:
        return dict(cluster.query(f"select name, total_run_count from {self.table} where queue = 'ticks'"))


FILE = FileStorage()
DJANGO = DatabaseStorage(
    "django_celery_beat.schedulers:DatabaseScheduler",
    "tests.arena.struck_schedulers:Django",
    "django_celery_beat_periodictask",
)
ALCHEMY = DatabaseStorage(
    "sqlalchemy_celery_beat.schedulers:DatabaseScheduler",
    "tests.arena.struck_schedulers:Alchemy",
    "celery_periodictask",
)
STORAGES: dict[str, Storage] = {"file": FILE, "django": DJANGO, "sqlalchemy": ALCHEMY}
