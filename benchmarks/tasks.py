"""What a guard around a task costs: throughput, sending and latency, ours and the peers' side by side."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from celery import Celery

from benchmarks.failover import DEFAULTS
from benchmarks.idle import cpu_seconds
from benchmarks.task_shop import OURS, SIDE_VARIABLE, SIDES, SLOW
from tests.arena.cluster import ROOT, Worker
from tests.arena.processes import make_directory
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from typing_extensions import Self

    from tests.arena.postgres import Database
    from tests.arena.servers import Redis

TASKS = 3_000  # queued for a measurement of the throughput
SLOW_WAVES = 10  # of a slow side: so many tasks for each child of the pool
SLOW_SHARE = 10  # a slow side takes part in every 10th round of latencies
WARM_UP = 50  # tasks for each child, before anything is measured
SETTLE = 0.005  # seconds between two tasks of the latency: what is done after the result is there
REST = 1.0  # seconds without anything before a measurement


@dataclass(slots=True)
class Costs:
    """What was measured of one side; each list has one value a round.

    Attributes:
        rates: tasks run per second.
        sends: calls of `delay()` per second.
        cpu: CPU seconds of the worker and all it started for each task; less a matter of who else uses the machine.
        to_run: seconds from `delay()` to the run's first instruction.
        to_result: seconds from there until the caller has the result.
    """

    rates: list[float] = field(default_factory=list)
    sends: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    to_run: list[float] = field(default_factory=list)
    to_result: list[float] = field(default_factory=list)


class Side:
    """A worker and a sender of one side, on a queue of their own."""

    def __init__(self, name: str, children: int, redis: Redis, database: Database | None, directory: Path) -> None:
        self.name = name
        self.children = children
        self._redis = redis
        self._queue = f"side-{SIDES.index(name)}"
        self._node = f"{self._queue}@bench"
        self._numbers = 0
        conf: dict[str, Any] = {
            "broker_url": redis.url(),
            "result_backend": redis.url(1),
            "task_default_queue": self._queue,
        }
        if name in OURS:
            assert database is not None
            conf |= {**DEFAULTS, "highlander_url": database.url(), "highlander_namespace": self._queue}
        env = {
            **os.environ,
            SIDE_VARIABLE: name,
            "HIGHLANDER_ARENA_CONF": json.dumps(conf),
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
        }
        argv = [
            *(sys.executable, "-m", "celery", "-A", "benchmarks.task_shop", "worker"),
            *("-n", self._node, "-c", str(children), "-l", "WARNING", "-P", "prefork", "-Q", self._queue),
            *("--without-mingle", "--without-gossip"),
        ]
        self._worker = Worker(self._queue, argv, env, directory / f"{self._queue}-{children}.log", ROOT)
        self._control = Celery("control", broker=redis.url(), backend=redis.url(1)).control
        self._sender = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.task_sender"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            cwd=ROOT,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._sender.communicate()
        if self._worker.is_running:
            self._worker.send(signal.SIGTERM)
            self._worker.wait()
        self._worker.close()

    def warm_up(self) -> None:
        """Wait for the worker, and let every child of its pool run some tasks."""
        wait_until(lambda: self._control.ping([self._node], timeout=2.0), 60, f"the worker of {self.name}")
        self._send(self.children if self.name in SLOW else WARM_UP * self.children)
        self._collect()

    def burst(self, costs: Costs) -> None:
        """Queue many tasks while the worker consumes nothing, then let it; note the rates and the CPU."""
        count = self.children * SLOW_WAVES if self.name in SLOW else TASKS
        self._command("cancel_consumer")
        time.sleep(REST)
        seconds = self._send(count)
        time.sleep(REST)
        before = self._cpu()
        self._command("add_consumer")
        wait_until(self._is_taken, 600, f"{self.name} to take its tasks")
        first, last = self._collect()
        # What is timed are starts, and the first one of each child is where the clock begins.
        costs.rates.append((count - self.children) / (last - first))
        costs.sends.append(count / seconds)
        costs.cpu.append((self._cpu() - before) / count)

    def one(self, costs: Costs) -> None:
        """Run one task on the idle worker; note the times to its run, and from there to its result."""
        to_run, to_result = self._ask("one", self._take(1))
        costs.to_run.append(to_run)
        costs.to_result.append(to_result)

    def _cpu(self) -> float:
        return sum(cpu_seconds(pid) for pid in (self._worker.pid, *self._worker.family))

    def _take(self, count: int) -> int:
        self._numbers += count
        return self._numbers - count

    def _send(self, count: int) -> float:
        return float(self._ask("send", self._take(count), count))

    def _collect(self) -> tuple[float, float]:
        first, last = self._ask("collect")
        return first, last

    def _is_taken(self) -> bool:
        return self._redis.command("LLEN", self._queue).strip() == ":0"

    def _command(self, command: str) -> None:
        answers = getattr(self._control, command)(self._queue, destination=[self._node], reply=True, timeout=10.0)
        if not answers:
            raise RuntimeError(f"the worker of {self.name} does not answer to {command}:\n{self._worker.log[-2000:]}")

    def _ask(self, *order: object) -> Any:  # whatever the order is answered with
        assert self._sender.stdin is not None
        assert self._sender.stdout is not None
        self._sender.stdin.write(json.dumps(order) + "\n")
        self._sender.stdin.flush()
        answer = self._sender.stdout.readline()
        if not answer:
            raise RuntimeError(f"the sender of {self.name} has ended")
        return json.loads(answer)


def measure(
    redis: Redis, database: Database | None, children: int, bursts: int, rounds: int, names: Sequence[str] = SIDES
) -> dict[str, Costs]:
    """Run all sides on pools of so many children, one side at a time and in turn.

    Args:
        redis: Broker, result backend, and where the peers lock.
        database: Where ours locks.
        children: Of each worker's pool.
        bursts: Measurements of the throughput of each side.
        rounds: Single tasks of each side.
        names: The sides.
    """
    redis.command("FLUSHALL")
    directory = make_directory("benchmark")
    found = {name: Costs() for name in names}
    with ExitStack() as stack:
        sides = [stack.enter_context(Side(name, children, redis, database, directory)) for name in names]
        for side in sides:
            side.warm_up()
        for number in range(bursts):
            for side in _turned(sides, number):
                side.burst(found[side.name])
        for number in range(rounds):
            for side in _turned(sides, number):
                if side.name in SLOW and number % SLOW_SHARE:
                    continue
                time.sleep(SETTLE)
                side.one(found[side.name])
    return found


def _turned(sides: list[Side], number: int) -> list[Side]:
    """Who follows whom is not the same in each round."""
    first = number % len(sides)
    turned = sides[first:] + sides[:first]
    return turned if number // len(sides) % 2 == 0 else turned[::-1]
