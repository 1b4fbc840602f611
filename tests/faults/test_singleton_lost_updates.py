"""Processes are killed at random while many runs add to counters without any care: no update is lost."""

from __future__ import annotations

import itertools
import os
import random
import signal
from typing import TYPE_CHECKING

import pytest

from tests.arena.run_increments import Ledger
from tests.arena.waiting import wait_until
from tests.faults import scenes

if TYPE_CHECKING:
    from tests.arena.cluster import Worker
    from tests.arena.run_cluster import RunCluster
    from tests.conftest import MakeRunCluster

pytestmark = [pytest.mark.fault, pytest.mark.postgres, pytest.mark.redis, pytest.mark.rabbitmq]

COUNTERS = ("a", "b", "c")
LIMIT = 240.0


class Storm:
    """Workers that increment, and are killed every so many increments."""

    def __init__(self, shop: RunCluster, workers: int, concurrency: int, seed: int) -> None:
        self.shop = shop
        self.random = random.Random(seed)
        self.kills = 0
        self._concurrency = concurrency
        self._names = itertools.count(1)
        self._sent: dict[str, set[int]] = {counter: set() for counter in COUNTERS}
        self._workers = [self._start() for _ in range(workers)]

    def _start(self) -> Worker:
        return self.shop.start_node(f"n{next(self._names)}", concurrency=self._concurrency)

    def send(self, task: str, count: int) -> None:
        """Send that many increments for each counter."""
        for number, counter in itertools.product(range(1, count + 1), COUNTERS):
            self._sent[counter].add(number)
            self.shop.call(task, counter, number)

    def done(self) -> int:
        """How many increments were done."""
        return sum(len({number for _, number in self.ledger(counter).done}) for counter in COUNTERS)

    def ledger(self, counter: str) -> Ledger:
        """What became of a counter so far."""
        return Ledger.read(self.shop.directory, counter)

    def rage(self, every: int, faults: list[str]) -> None:
        """Do one of the faults whenever so many increments more were done, until all were."""
        total = sum(map(len, self._sent.values()))
        for due in range(every, total - every, every):
            wait_until(lambda due=due: self.done() >= due, LIMIT, f"{due} of {total} increments")  # type: ignore[misc]
            self._strike(self.random.choice(faults))
        wait_until(lambda: self.done() >= total, LIMIT, f"all of {total} increments")

    def _strike(self, fault: str) -> None:
        worker = self.random.choice(self._workers)
        self.kills += self._concurrency
        if fault == "worker":
            worker.send(signal.SIGKILL)
            scenes.nothing_left(worker)
            self._workers.remove(worker)
            self._workers.append(self._start())
        elif fault == "session":
            self.shop.query(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
                " and application_name like 'highlander %' order by random() limit 1"
            )
        elif fault == "keeper":
            os.kill(worker.keeper, signal.SIGKILL)
        elif children := worker.children:
            os.kill(self.random.choice(children), signal.SIGKILL)

    def judge(self) -> None:
        """Nothing is lost, nothing is left."""
        for counter in COUNTERS:
            ledger = self.ledger(counter)
            assert ledger.lost == []
            assert {number for _, number in ledger.done} == self._sent[counter]
            assert ledger.value == len(ledger.done) + ledger.cut_short
            assert ledger.cut_short <= self.kills
        self.shop.nothing_is_held()
        assert self.shop.query("select key from highlander_run") == [(-1,)]


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("pool", "task", "broker", "faults", "workers", "concurrency", "count"),
    [
        pytest.param("prefork", "increments", "rabbitmq", ["child", "child", "worker"], 2, 4, 25, id="quick"),
        *(
            pytest.param(*case, id="-".join(map(str, case[:3])) + f"-{case[3][-1]}", marks=pytest.mark.slow)
            for case in (
                ("prefork", "increments", "rabbitmq", ["child", "child", "worker"], 3, 8, 300),
                ("prefork", "increments_by_retries", "rabbitmq", ["child", "child", "worker"], 3, 8, 100),
                ("prefork", "increments", "redis", ["child"], 3, 8, 300),
                ("prefork", "increments", "rabbitmq", ["child", "session"], 3, 4, 100),
                ("prefork", "increments", "rabbitmq", ["child", "worker", "session", "keeper"], 2, 4, 60),
                ("threads", "increments", "rabbitmq", ["worker"], 3, 8, 300),
                ("threads", "increments", "rabbitmq", ["session", "worker"], 3, 4, 60),
                ("gevent", "increments", "rabbitmq", ["worker"], 3, 8, 300),
            )
        ),
    ],
)
def test_no_update_is_lost(
    runs: MakeRunCluster,
    pool: str,
    task: str,
    broker: str,
    faults: list[str],
    workers: int,
    concurrency: int,
    count: int,
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    storm = Storm(runs(broker, pool=pool), workers, concurrency, seed)
    storm.send(task, count)
    storm.rage(len(COUNTERS) * count // 6, faults)
    storm.judge()
