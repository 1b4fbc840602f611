"""The demonstration's judgement and its words, without any server."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import pytest

from example_project.demo.play import Result
from example_project.demo.scenes import scenes
from example_project.demo.screen import milliseconds, summary, table
from example_project.demo.tally import Tally
from tests.arena.cluster import TIMELY
from tests.arena.journal import Journal

if TYPE_CHECKING:
    from pathlib import Path


def result(
    *,
    takeover: float | None = 0.02,
    next_payment: float | None = 0.1,
    at_once: int = 1,
    lost: int = 0,
    may_lose: float = 0,
) -> Result:
    return Result("kill -9", takeover, next_payment, at_once, sent=100, lost=lost, bound=1.0, may_lose=may_lose)


def test_a_scene_that_keeps_every_promise_is_not_broken() -> None:
    assert result().broken == []


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (result(at_once=2), "2 were at work at once"),
        (result(takeover=1.2), "takeover of the process took 1.2 s"),
        (result(takeover=None), "takeover of the process never came"),
        (result(next_payment=2.5), "takeover of the queue took 2.5 s"),
        (result(lost=1), "1 payments lost"),
        (result(lost=2, may_lose=1), "2 payments lost"),
    ],
)
def test_a_broken_promise_is_named_in_the_line_about_its_scene(broken: Result, words: str) -> None:
    assert len(broken.broken) == 1
    assert f"BROKEN: {words}" in summary(broken)


@pytest.mark.parametrize("may_lose", [1, inf])
def test_what_a_broker_cannot_keep_breaks_no_promise(may_lose: float) -> None:
    assert result(lost=1, may_lose=may_lose).broken == []


def test_the_table_has_a_line_for_each_scene_in_columns_that_align() -> None:
    lines = table([result(), result(takeover=None, lost=12)]).splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert "never" in lines[3]


def test_durations_are_told_in_milliseconds_below_a_second() -> None:
    assert [milliseconds(value) for value in (0.0123, 0.9, 2.34, None)] == ["12 ms", "900 ms", "2.3 s", "never"]


def test_every_scene_names_the_leader_and_may_not_take_longer_than_two_leases_and_the_slack() -> None:
    for scene in scenes(TIMELY):
        assert "w7" in scene.doing.format(leader="w7")
        assert scene.bound <= 2 * TIMELY["highlander_lease_duration"] + 1.0


def test_the_tally_follows_journals_as_they_grow_and_leaves_half_a_line_for_later(tmp_path: Path) -> None:
    tally = Tally(tmp_path)
    with Journal.open(tmp_path, "highlander") as journal, journal.task("highlander", 1, 7, "4"):
        assert tally.of("highlander").ended == set()
        assert tally.of("highlander").token == 7
    first = tally.of("highlander").first
    assert tally.of("highlander").ended == {"4"}
    with Journal.open(tmp_path, "highlander") as journal:
        later = journal.write("highlander", 2, 9, "beat")
        with journal.path.open("a") as file:
            file.write("123 highlander 2 11")
    seen = tally.of("highlander")
    assert (seen.token, seen.first, seen.lines) == (9, later, 3)
    assert first < later
