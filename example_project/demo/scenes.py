"""The scenes: what breaks, why the takeover takes as long as it does, and the bound that must not be broken."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from example_project.demo.stage import Stage
    from tests.arena.cluster import Worker

SLACK = 1.0
"""Seconds that a busy machine may add to any takeover."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One way to break the leader.

    Attributes:
        title: for the table.
        doing: one sentence, with the leader's name in place of `{leader}`.
        why: one sentence on the time that the takeover takes.
        bound: seconds after which a takeover breaks the promise.
        breaks: does it.
        mends: undoes what can be undone, once another worker has taken over; returns a sentence on what came of it.
        kills: whether the worker dies without a word, with what its broker's client has in its hands.
    """

    title: str
    doing: str
    why: str
    bound: float
    breaks: Callable[[Stage, Worker], None]
    mends: Callable[[Stage, Worker], str]
    kills: bool = False


def scenes(timing: dict[str, Any]) -> list[Scene]:
    """Return the scenes, for the durations in `timing`."""
    lease: float = timing["highlander_lease_duration"]
    silence: float = timing["highlander_worker_timeout"]
    drain: float = timing["highlander_drain_timeout"]
    poll: float = timing["highlander_poll_interval"]
    return [
        Scene(
            "SIGTERM",
            "Stop the leader, {leader}, with SIGTERM, as a deployment does.",
            "It ends its work, notes in the database that it has, and wakes the others: a matter of milliseconds.",
            SLACK,
            lambda _, leader: leader.send(signal.SIGTERM),
            _say_that_it_ended,
        ),
        Scene(
            "kill -9",
            "Kill the leader, {leader}, with kill -9, as a machine that runs out of memory does.",
            "Its keeper, a small process beside it, kills what it left behind and hands over: milliseconds again.",
            SLACK,
            lambda _, leader: leader.send(signal.SIGKILL),
            lambda _, leader: f"{leader.name} is gone, and its children with it.",
            kills=True,
        ),
        Scene(
            "frozen (SIGSTOP)",
            "Freeze the main process of the leader, {leader}, with SIGSTOP; its children go on.",
            f"Its keeper waits {silence:g} s for a sign of life, gives the work {drain:g} s to end, then kills it.",
            silence + drain + SLACK,
            lambda _, leader: leader.send(signal.SIGSTOP),
            _wake,
            kills=True,
        ),
        Scene(
            "cut off",
            "Cut the leader, {leader}, off from the database: packets vanish, and no connection is closed.",
            f"Nobody can see whether it still works, so the others wait until its lease of {lease:g} s has run out.",
            lease + 3 * poll + SLACK,
            lambda stage, leader: stage.cut_off(leader),
            _reconnect,
        ),
        Scene(
            "PostgreSQL restart",
            "Restart PostgreSQL under all of them; the leader is {leader}.",
            f"A restarted server may have forgotten something, so the next leader first waits one lease, {lease:g} s.",
            lease + 3.0 + SLACK,  # seconds: the restart itself, and the pause between two tries to connect
            lambda stage, _: stage.postgres.restart(),
            lambda stage, _: f"All {len(stage.workers)} workers stayed up, and came back by themselves.",
        ),
    ]


def _say_that_it_ended(_: Stage, leader: Worker) -> str:
    return f"{leader.name} ended with exit code {leader.wait()}."


def _wake(_: Stage, leader: Worker) -> str:
    leader.send(signal.SIGCONT)
    if leader.is_running:
        return f"SIGCONT: {leader.name} is awake again, as a standby."
    return f"SIGCONT comes too late for {leader.name}: its keeper had to kill it, because it did not stop its work."


def _reconnect(stage: Stage, leader: Worker) -> str:
    stage.heal(leader)
    stage.await_nodes()
    return f"The network is back, and {leader.name} with it, as a standby; it never ran without its lease."
