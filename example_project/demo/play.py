"""Plays the scenes and measures each of them, from what the shop's own work wrote into its journals."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from example_project.demo.scenes import SLACK, Scene, scenes
from example_project.demo.stage import WORKERS, Stage
from example_project.demo.watched import PROCESS, QUEUE
from tests.arena.journal import now_ns
from tests.arena.waiting import WaitedInVainError, wait_until

if TYPE_CHECKING:
    from tests.arena.cluster import Worker

SINGLETONS = (PROCESS, QUEUE)
_BILLION = 1e9
_SETTLE = 1.0  # seconds between two scenes, for the reader's eye


class Screen(Protocol):
    """Where the demonstration is shown."""

    def headline(self, text: str) -> None:
        """Begin a scene."""

    def say(self, text: str) -> None:
        """Say one sentence."""

    def result(self, result: Result) -> None:
        """Show what a scene came to."""


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured in one scene; durations are seconds, None where nobody took over."""

    title: str
    takeover: float | None
    next_payment: float | None
    at_once: int
    sent: int
    lost: int
    bound: float
    may_lose: float

    @property
    def broken(self) -> list[str]:
        """The promises that were broken."""
        found = []
        if self.at_once > 1:
            found.append(f"{self.at_once} were at work at once")
        for what, duration, bound in (
            ("process", self.takeover, self.bound),
            ("queue", self.next_payment, self.bound + SLACK),
        ):
            if duration is None or duration > bound:
                took = "never came" if duration is None else f"took {duration:.1f} s"
                found.append(f"takeover of the {what} {took}, bound {bound:.1f} s")
        if self.lost > self.may_lose:
            found.append(f"{self.lost} payments lost")
        return found


def play(stage: Stage, screen: Screen) -> list[Result]:
    """Play everything; return one result for each scene."""
    lease = stage.timing["highlander_lease_duration"]
    screen.headline(f"Start {WORKERS} workers, all alike: celery -A example_project.shop worker -X highlander")
    screen.say(
        f"In an empty database nobody can know who led before, so the first leader waits one lease, {lease:g} s."
    )
    for _ in range(WORKERS):
        stage.start_worker()
        stage.await_nodes()
    stage.start_paying()
    stage.leader()
    wait_until(lambda: stage.tally.of(QUEUE).ended, 30, "the first payment")
    screen.say(f"{stage.leader().name} leads: it alone enters the payments, and beside it the one price feed runs.")
    results = []
    counted = 0
    for number, scene in enumerate(scenes(stage.timing), 1):
        time.sleep(_SETTLE)
        results.append(_play(stage, screen, number, scene, counted))
        counted += results[-1].sent
        screen.result(results[-1])
    stage.stop_paying()
    return results


def _play(stage: Stage, screen: Screen, number: int, scene: Scene, counted: int) -> Result:
    leader = stage.leader()
    screen.headline(f"{number}. {scene.doing.format(leader=leader.name)}")
    screen.say(scene.why)
    tokens = {name: stage.tally.of(name).token for name in SINGLETONS}
    broken_at = now_ns()
    scene.breaks(stage, leader)
    durations = {name: _takeover(stage, name, tokens[name], broken_at, scene.bound) for name in SINGLETONS}
    screen.say(scene.mends(stage, leader))
    successor = stage.leader()
    while len(stage.workers) < WORKERS:
        stage.start_worker()
    stage.await_nodes()
    sent = stage.sent
    lost = _await_payments(stage, counted, sent)
    screen.say(f"{successor.name} leads now. {_others(stage, successor)}")
    return Result(
        title=scene.title,
        takeover=durations[PROCESS],
        next_payment=durations[QUEUE],
        at_once=max(_at_once(stage, name, broken_at) for name in SINGLETONS),
        sent=sent - counted,
        lost=len(lost),
        bound=scene.bound,
        may_lose=stage.in_flight if scene.kills else 0,
    )


def _takeover(stage: Stage, singleton: str, token: int, since: int, bound: float) -> float | None:
    """Wait for the first line of a later term; return the seconds since the fault."""
    try:
        wait_until(lambda: stage.tally.of(singleton).token > token, bound + 10, "a takeover")
    except WaitedInVainError:
        return None
    return (stage.tally.of(singleton).first - since) / _BILLION


def _at_once(stage: Stage, singleton: str, since: int) -> int:
    """Return how many owners acted at one instant after `since`, by the referee's reading of the journals."""
    beside = Counter(
        overlap.later for overlap in stage.cluster.referee().overlaps(singleton) if overlap.later.last > since
    )
    return 1 + max(beside.values(), default=0)


def _await_payments(stage: Stage, since: int, until: int) -> list[int]:
    """Give the payments from number `since` up to `until` time to be entered; return those that were not."""
    limit = 7.0 if stage.has_redis else 3.0  # with files, what was in flight at a kill -9 is gone for good
    with contextlib.suppress(WaitedInVainError):
        wait_until(lambda: not stage.unpaid(since, until), limit, "the payments")
    return stage.unpaid(since, until)


def _others(stage: Stage, leader: Worker) -> str:
    standbys = [worker.name for worker in stage.workers if worker is not leader]
    return f"Standing by: {', '.join(standbys)}."
