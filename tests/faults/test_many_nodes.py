"""Many nodes at once: they start together, their leader dies, their server restarts, their leader leaves.

Nobody may stampede: what they ask of the server grows with their number, and is spread over time.
"""

from __future__ import annotations

import re
import signal
import time
from collections import Counter
from contextlib import ExitStack, closing
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import pytest

from tests.arena.journal import now_ns
from tests.arena.referee import Referee
from tests.arena.requirements import require
from tests.arena.servers import Database, Postgres
from tests.arena.swarm import Swarm
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.fault, pytest.mark.postgres]

NAME = "ledger"
LEASE = 6.0
SLACK = 5.0  # seconds, of a busy machine
A_PROCESS = 25  # nodes
IDLE_STATEMENTS = 5.0  # of each node in a second: it polls 1.6 times, and looks who else is there
RECEIVED = re.compile(r"^(\S+ \S+) \S+ \[\d+\]\s+\S*\s*LOG:  connection received: host=127", re.MULTILINE)


class Scene:
    """A server and its nodes, and what they did to it since `mark`."""

    def __init__(self, server: Postgres, database: Database, nodes: int, directory: Path) -> None:
        self.server = server
        self.database = database
        self.nodes = nodes
        self.journals = directory / "journals"
        self.mark()

    def mark(self) -> None:
        self.marked_at = time.time()
        self._marked_ns = now_ns()
        self._statements = self.statements()

    @property
    def seconds(self) -> float:
        return (now_ns() - self._marked_ns) / 1e9

    def statements(self) -> int:
        sql = "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()"
        return int(self.database.execute(sql)[0][0])

    def attempts(self) -> list[float]:
        """When the server got attempts to connect, in seconds since `mark`."""
        found = []
        for text in RECEIVED.findall(self.server.log.read_text(errors="replace")):
            at = datetime.strptime(text, "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=timezone.utc).timestamp()
            if at >= self.marked_at:
                found.append(at - self.marked_at)
        return found

    def busiest(self, length: float) -> int:
        """How many attempts to connect there were in the busiest `length` seconds since `mark`."""
        attempts = sorted(self.attempts())
        return max((sum(first <= at < first + length for at in attempts) for first in attempts), default=0)

    def leader(self, after: int = 0) -> int:
        """Wait until somebody acts under a token above `after`; return it."""

        def token() -> int:
            sql = """select s.token from highlander_singleton s join highlander_term t using (key, token)
                where s.name = %s and s.token > %s and t.elected_at is not null and t.ended_at is null"""
            return int((self.database.execute(sql, NAME, after) or [(0,)])[0][0])

        return wait_until(token, 60, f"a leader with a token above {after}")

    def connected(self) -> int:
        sql = "select count(*) from pg_stat_activity where application_name like 'highlander %'"
        return int(self.database.execute(sql)[0][0])

    def all_connected(self, nodes: int) -> None:
        wait_until(lambda: self.connected() == nodes, 60, f"{nodes} nodes to be connected")

    def statements_since(self) -> int:
        return self.statements() - self._statements

    def leading_among(self, swarms: list[Swarm]) -> Swarm:
        ((pid,),) = self.database.execute(
            "select pid from highlander_term t join highlander_singleton s using (key, token) where s.name = %s", NAME
        )
        return next(swarm for swarm in swarms if swarm.pid == pid)

    def assert_spread(self) -> None:
        """Each node tried a few times at most, and they did not all come at once."""
        busiest = self.busiest(1.0)  # `tests/unit/test_node.py` looks closer, where no busy machine spreads them anyway
        assert busiest <= 60 + self.nodes / 2, f"{busiest} of {self.nodes} nodes in a second"
        assert len(self.attempts()) <= 3 * self.nodes

    def report(self, what: str) -> None:
        statements = self.statements_since()
        buckets = Counter(int(at) for at in self.attempts())
        print(
            f"{what}: {self.seconds:.2f} s; {sum(buckets.values())} attempts to connect, {self.busiest(1.0)} in the"
            f" busiest second, {self.busiest(0.1)} in the busiest 0.1 s, by second"
            f" {dict(sorted(buckets.items()))};"
            f" {statements} statements, {statements / self.seconds:.0f} a second"
        )


def reconnect(scene: Scene, token: int, after: Callable[[], object], what: str) -> int:
    """All nodes but the first one lose their sessions; wait until they are back, and one leads; return its token."""
    scene.all_connected(scene.nodes - 1)
    scene.mark()
    after()
    scene.all_connected(scene.nodes - 1)
    scene.report(f"{what}; all connected again")
    scene.assert_spread()
    token = scene.leader(token)
    scene.report(f"{what}; a leader again")
    assert scene.seconds < LEASE + 2 * SLACK
    return token


@pytest.mark.timeout(300)
@pytest.mark.slow
@pytest.mark.parametrize("nodes", [30, 200])
def test_many_nodes_do_not_stampede(nodes: int, tmp_path: Path) -> None:
    require(Postgres.available())
    (tmp_path / "journals").mkdir()
    settings: dict[str, str | int] = {"log_connections": "on", "max_connections": nodes + 10, "log_timezone": "UTC"}
    with ExitStack() as stack:
        server = stack.enter_context(Postgres(settings=settings))
        database = server.create_database("swarm")
        scene = Scene(server, database, nodes, tmp_path)

        def start(number: int, priority: int = 0) -> Swarm:
            return stack.enter_context(closing(Swarm(database.url(), number, [NAME], tmp_path, priority)))

        # -- they start together
        leading = start(1, 1)
        scene.all_connected(1)
        swarms = [start(min(A_PROCESS, nodes - 1 - first)) for first in range(0, nodes - 1, A_PROCESS)]
        scene.all_connected(nodes)
        scene.report("all connected")
        token = scene.leader()
        scene.report("a leader")

        # -- nothing happens
        scene.mark()
        wait_until(lambda: scene.seconds > 3, 30, "three seconds")
        scene.report("idle")
        assert not scene.attempts()
        assert scene.statements_since() / scene.seconds < nodes * IDLE_STATEMENTS

        # -- the leader dies
        scene.mark()
        leading.end(signal.SIGKILL)
        token = scene.leader(token)
        scene.report("the leader was killed; the next one")
        assert scene.seconds < LEASE + SLACK

        token = reconnect(scene, token, lambda: server.terminate_backends("highlander %"), "all sessions were ended")
        token = reconnect(scene, token, server.restart, "the server restarted")

        # -- the leader leaves in order
        leaving = scene.leading_among(swarms)
        scene.mark()
        leaving.end(signal.SIGTERM)
        token = scene.leader(token)
        scene.report("the leader left; the next one")

        for swarm in swarms:
            swarm.close()
        referee = Referee(tmp_path / "journals")
        referee.verdict(NAME)
        *_, handed_over = referee.takeovers(NAME)
        print(f"handed over in {handed_over.duration / 1e6:.1f} ms")
        assert handed_over.duration / 1e9 < SLACK
        assert not re.findall("too many clients|remaining connection slots", server.log.read_text(errors="replace"))
