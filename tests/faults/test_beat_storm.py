"""Three beats, twenty entries, and everything that can go wrong, one thing after the other.

`HIGHLANDER_STORM_SECONDS` says for how long, `HIGHLANDER_STORM_SEED` which storm.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest

from tests.arena import executions
from tests.arena.beats import BeatCluster
from tests.arena.proxy import TcpProxy
from tests.arena.requirements import require
from tests.arena.servers import Postgres, RabbitMQ, Redis
from tests.arena.waiting import WaitedInVainError, wait_until
from tests.faults.conftest import lead_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.arena.cluster import Worker

pytestmark = [pytest.mark.fault, pytest.mark.postgres]

SECONDS = float(os.environ.get("HIGHLANDER_STORM_SECONDS", "60"))
SEED = int(os.environ.get("HIGHLANDER_STORM_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
INTERVALS = {f"entry-{number}": 1.0 + (number % 9) / 2 for number in range(20)}
PAUSE = 4.0
"""Seconds between two faults, about."""

CATCH_UP = 60.0
NEAR = 4.0
"""Seconds between a tick and a restart of the broker that may have to do with each other."""


class Storm:
    """The cluster of the storm, and what may happen to it."""

    def __init__(
        self, postgres: Postgres, broker: Redis | RabbitMQ, directory: Path, policy: str, *, is_singleton_queue: bool
    ) -> None:
        self.random = random.Random(SEED)
        self.postgres = postgres
        self.broker = broker
        self.database = postgres.create_database("storm")
        lead_once(self.database.url(), ["highlander", "ticks", "beat"])
        self.is_singleton_queue = is_singleton_queue
        self.proxies = [TcpProxy("127.0.0.1", postgres.port).start() for _ in range(3)]
        entries = {name: {"seconds": seconds} for name, seconds in INTERVALS.items()}
        conf = {
            "highlander_beat_missed": policy,
            "highlander_queues": ["ticks"] if is_singleton_queue else ["highlander"],
            "broker_transport_options": {"visibility_timeout": 6} if isinstance(broker, Redis) else {},
        }
        self.cluster = BeatCluster(self.database.url(), {"broker_url": broker.url()}, directory, entries, conf)
        self.beats: list[Worker] = []
        self.told: list[str] = []
        self.restarts: list[datetime] = []  # of the broker

    def start(self) -> None:
        for _ in range(2):
            if self.is_singleton_queue:
                self.cluster.start("-X", "ticks", concurrency=2)
            else:
                self.cluster.start_consumer(concurrency=2)
        self.beats = [self._beat(place) for place in range(3)]

    def _beat(self, place: int) -> Worker:
        port = self.proxies[place].port
        return self.cluster.start_beat(conf={"highlander_url": self.database.url(port=port)})

    def strike(self) -> None:
        """Have one thing happen, to whichever beat, rather to the active one."""
        self._start_what_is_dead()
        place = self.random.randrange(3)
        acting = self.cluster.acting().get("beat", (0, 0))[0]
        for number, beat in enumerate(self.beats):
            if beat.pid == acting and self.random.random() < 0.8:
                place = number
        kinds: list[Callable[[int], None]] = [
            self.terminate, self.kill, self.kill_with_keeper, self.kill_keeper, self.pause, self.end_session,
            self.restart_database, self.cut, self.restart_broker,
        ]  # fmt: skip
        kind = self.random.choice(kinds)
        self.told.append(f"{time.strftime('%H:%M:%S')} {kind.__name__} {self.beats[place].name}")
        kind(place)

    def _start_what_is_dead(self) -> None:
        for place, beat in enumerate(self.beats):
            if not beat.is_running:
                self.beats[place] = self._beat(place)

    def terminate(self, place: int) -> None:
        self.beats[place].send(signal.SIGTERM)

    def kill(self, place: int) -> None:
        self.beats[place].send(signal.SIGKILL)

    def kill_with_keeper(self, place: int) -> None:
        self.kill_keeper(place)
        self.kill(place)

    def kill_keeper(self, place: int) -> None:
        with contextlib.suppress(AssertionError, ProcessLookupError):
            os.kill(self.beats[place].keeper, signal.SIGKILL)

    def pause(self, place: int) -> None:
        """Longer than a lease, or shorter; with its keeper or without."""
        stopped = [self.beats[place].pid]
        with contextlib.suppress(AssertionError):
            stopped += [self.beats[place].keeper] if self.random.random() < 0.5 else []
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        time.sleep(self.random.uniform(0.5, 5.0))  # the fault itself
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def end_session(self, _: int) -> None:
        self.postgres.terminate_backends("highlander%")

    def restart_database(self, _: int) -> None:
        self.postgres.restart(self.random.choice(["fast", "immediate"]))

    def cut(self, place: int) -> None:
        self.proxies[place].cut()
        time.sleep(self.random.uniform(1.0, 6.0))  # the fault itself
        self.proxies[place].heal()

    def restart_broker(self, _: int) -> None:
        self.restarts.append(datetime.now(timezone.utc))
        self.broker.restart()

    def close(self) -> None:
        self.cluster.__exit__()
        for proxy in self.proxies:
            proxy.close()


@pytest.fixture(params=["redis", pytest.param("rabbitmq", marks=pytest.mark.slow)])
def broker(request: pytest.FixtureRequest) -> Iterator[Redis | RabbitMQ]:
    kind = Redis if request.param == "redis" else RabbitMQ
    require(kind.available())
    with Redis(durable=True) if kind is Redis else RabbitMQ() as server:
        yield server


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    require(Postgres.available())
    with Postgres() as server:
        yield server


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 300)
@pytest.mark.parametrize("policy", ["all", "latest"])
def test_every_tick_runs_once(postgres: Postgres, broker: Redis | RabbitMQ, tmp_path: Path, policy: str) -> None:
    rage(Storm(postgres, broker, tmp_path, policy, is_singleton_queue=False), policy)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 300)
def test_every_tick_of_a_singleton_queue_runs_once(
    postgres: Postgres, broker: Redis | RabbitMQ, tmp_path: Path
) -> None:
    rage(Storm(postgres, broker, tmp_path, "all", is_singleton_queue=True), "all")


def rage(storm: Storm, policy: str) -> None:
    """Let it rage, and judge what is left."""
    try:
        storm.start()
        wait_until(storm.cluster.runs, 60, "a run")
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            storm.strike()
            time.sleep(storm.random.uniform(0.5, 1.5) * PAUSE)  # the storm's pace
        storm._start_what_is_dead()
        judge(storm, policy)
    finally:
        print(f"seed {SEED}; {len(storm.told)} faults:", *storm.told, sep="\n  ")
        for worker in storm.cluster.workers:
            print(f"--- {worker.name}", *worker.log.splitlines()[-15:], sep="\n")
        storm.close()


def judge(storm: Storm, policy: str) -> None:
    """Wait for calm, then look at the table of executions."""
    cluster = storm.cluster
    settled = "select count(*) from highlander_tick where settled_at is null and claimed_at < now() - interval '5 s'"
    wait_until(lambda: cluster.query(settled)[0][0] == 0, CATCH_UP, "every old tick to be settled")
    until = cluster.query("select min(last_run_at) from highlander_entry where name like 'entry%%'")[0][0]

    def runs() -> list[executions.Execution]:
        return [run for run in cluster.runs() if run.due_at <= until]

    skipped = {
        name: count for name, count in cluster.query("select name, skipped_count from highlander_entry") if count
    }
    if policy == "all":
        assert skipped == {}
        with contextlib.suppress(WaitedInVainError):
            wait_until(lambda: executions.missing(runs(), INTERVALS) == {}, CATCH_UP, "no holes")
        lost = not_excused(storm, executions.missing(runs(), INTERVALS))
        assert lost == {}, f"lost, and what the ledger knows of them: {known_of(storm, lost)}"
    else:
        # Each due tick ran, or was counted as skipped.
        with contextlib.suppress(WaitedInVainError):
            wait_until(lambda: holes(runs()) <= sum(skipped.values()), CATCH_UP, "no holes but the skipped ones")
        assert holes(runs()) <= sum(skipped.values()) + excused(storm, executions.missing(runs(), INTERVALS))
        assert sum(skipped.values()) > 0
    assert executions.from_two_copies(cluster.runs()) == {}
    twice = executions.doubled(cluster.runs())
    print(f"{len(cluster.runs())} runs, {len(twice)} ticks ran again when the broker delivered their message again")


def excused(storm: Storm, lost: dict[str, list[datetime]]) -> int:
    """How many of the lost ticks Redis may have lost, with any other message that was under way when it was restarted.

    kombu takes a message off its list (BRPOP) before it writes down that it has it. Each restart may cost what it
    popped for a worker that never got it: one message for each. From a singleton queue it is moved in one step.
    """
    if not isinstance(storm.broker, Redis) or storm.is_singleton_queue:
        return 0
    moments = [due for instants in lost.values() for due in instants]
    near = {r: sum(abs((due - r).total_seconds()) < NEAR for due in moments) for r in storm.restarts}
    workers = 2
    return sum(min(count, workers) for count in near.values())


def not_excused(storm: Storm, lost: dict[str, list[datetime]]) -> dict[str, list[datetime]]:
    """Return the lost ticks, but nothing if Redis itself may have lost them all."""
    return lost if sum(map(len, lost.values())) > excused(storm, lost) else {}


def known_of(storm: Storm, lost: dict[str, list[datetime]]) -> list[tuple[Any, ...]]:
    """What the ledger says of lost ticks; with Redis also what is unacknowledged."""
    found = [
        row
        for entry, instants in lost.items()
        for instant in instants
        for row in storm.cluster.query(
            "select entry, due_at, claimed_at, attempts, settled_at, failure, run_by, run_at from highlander_tick"
            " where entry = %s and due_at = %s",
            entry,
            instant,
        )
    ]
    if isinstance(storm.broker, Redis):
        found.append(("unacknowledged", storm.broker.command("HLEN", "unacked")))
    return found


def holes(runs: list[executions.Execution]) -> int:
    return sum(len(gone) for gone in executions.missing(runs, INTERVALS).values())
