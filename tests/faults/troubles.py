"""What must hold for a leader and its standby while their database is in trouble, and after it; makes none itself."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from typing import TYPE_CHECKING

from tests.arena.journal import now_ns
from tests.arena.requirements import require
from tests.arena.servers import Postgres
from tests.arena.waiting import wait_until
from tests.faults import scenes
from tests.faults.scenes import PROCESS, QUEUE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.arena.cluster import Cluster, Worker
    from tests.arena.servers import Database

LEASE = 3.0  # of the arena's TIMELY settings
SETTINGS: dict[str, str | int] = {"log_connections": "on"}
"""Of a server whose connection attempts are counted."""

ROLE = "clerk"
PASSWORD = "hunter2 & co"
"""Of the plain role that the workers connect with; to be found in no log."""

_TROUBLE = re.compile(r"(WARNING|ERROR|CRITICAL)/[^\]]*\] (.*)")
_ATTEMPT = re.compile(r"connection received: host=127\.0\.0\.1")
_RAMP = 10  # attempts before the pauses between two of them reach their 2 to 3 s
_LONGEST_PAUSE = 2.0


@contextlib.contextmanager
def own_database() -> Iterator[Database]:
    """A database on a server of its own, with a role that may do no more than it has to."""
    require(Postgres.available())
    with Postgres(settings=SETTINGS) as server:
        database = server.create_database("shop")
        make_role(database)
        yield database


def make_role(database: Database) -> None:
    """Make the plain role, as the owner of the database."""
    database.execute(f"create role {ROLE} login password '{PASSWORD}'")
    database.execute(f'alter database "{database.name}" owner to {ROLE}')


def grant_role(database: Database) -> None:
    """Let the role use the tables, which somebody else has made."""
    tables = "highlander_singleton, highlander_term, highlander_node, highlander_order"
    database.execute(f"grant select, insert, update, delete on {tables} to {ROLE}")
    database.execute(f"grant select on highlander_migration to {ROLE}")


def url(database: Database, driver: str = "psycopg2", password: str = PASSWORD) -> str:
    """Where the workers connect to, as the plain role."""
    return database.url(driver, user=ROLE, password=password)


class Trouble:
    """A trouble that begins when this is made; nobody may act in it, from one lease later on until it is over."""

    def __init__(self, cluster: Cluster, server: Postgres) -> None:
        self._cluster = cluster
        self._server = server
        self._logs = {worker: len(worker.log) for worker in cluster.workers}
        self._server_log = len(server.log.read_text(errors="replace"))
        self.begins()

    def begins(self) -> None:
        """It begins only now, after what was said and tried since this was made."""
        self.queue, self.process = (self._cluster.latest(singleton)[1] for singleton in (QUEUE, PROCESS))
        self.began_at = now_ns()

    def lasts(self, seconds: float) -> None:
        """Let it last, and see that the workers' other queues go on meanwhile."""
        wait_until(lambda: now_ns() - self.began_at > seconds * 1e9, seconds + 30, f"a trouble of {seconds:g} s")
        scenes.finishes(self._cluster, task="ordinary", queue="celery")
        self.over()

    def over(self) -> None:
        """It is over now: count what was said and tried until here."""
        self.over_at = now_ns()
        self.duration = (self.over_at - self.began_at) / 1e9
        self.said = {worker: self.said_by(worker) for worker in self._cluster.workers}
        self.attempts = len(_ATTEMPT.findall(self._server.log.read_text(errors="replace")[self._server_log :]))

    def said_by(self, worker: Worker) -> Counter[str]:
        """The warnings and errors that a worker logged since it began, without their numbers: how often each."""
        return Counter(re.sub(r"\d+", "#", what) for _, what in _TROUBLE.findall(worker.log[self._logs[worker] :]))

    def tells(self, words: str) -> None:
        """Wait until each worker has said why it has no lock session."""
        for worker in self._cluster.workers:
            wait_until(
                lambda worker=worker: any(words in line for line in self.said_by(worker)),  # type: ignore[misc]
                scenes.PATIENCE,
                f"{worker.name} to tell of {words!r}",
            )

    def is_followed_by_a_new_term(self) -> None:
        """Wait until both singletons are at work again; then judge."""
        scenes.acts(self._cluster, PROCESS, self.process)
        scenes.acts(self._cluster, QUEUE, self.queue)
        scenes.finishes(self._cluster)
        self._judge()

    def _judge(self) -> None:
        referee = self._cluster.referee()
        referee.verdict(QUEUE, PROCESS)
        for singleton in (QUEUE, PROCESS):
            for spell in referee.spells(singleton):
                ended_in_time = spell.last < self.began_at + LEASE * 1e9
                assert ended_in_time or spell.first > self.over_at, f"{singleton} acted in the trouble: {spell}"
        assert all(worker.is_running for worker in self._cluster.workers)
        for worker, said in self.said.items():
            assert said, f"{worker.name} says nothing"
            often = {what: times for what, times in said.items() if times > 1}
            assert not often, f"{worker.name} says the same again and again: {often}"
            assert PASSWORD not in worker.log
        limit = len(self.said) * (_RAMP + self.duration / _LONGEST_PAUSE)
        assert self.attempts <= limit, f"{self.attempts} attempts to connect in {self.duration:.1f} s"
        print(f"{self.attempts} attempts to connect in {self.duration:.1f} s; said: {dict(self.said)}")
