"""The referee: it must see what is there, however short, and tolerate what a killed process leaves behind."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.arena.journal import Journal, now_ns
from tests.arena.records import JournalError
from tests.arena.referee import Referee

if TYPE_CHECKING:
    from pathlib import Path

MS = 1_000_000
US = 1_000


class Court:
    """Writes journals with instants of the test's choosing, and calls the referee."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def acts(
        self, node: str, token: object, *instants: int, singleton: str = "feed", what: str = "beat", file: str = ""
    ) -> None:
        self.lines(file or f"{singleton}.{node}", *(f"{at} {singleton} {node} {token} {what}" for at in instants))

    def lines(self, file: str, *lines: str, end: str = "\n") -> None:
        with (self.directory / f"{file}.0.journal").open("a") as journal:
            journal.write("\n".join(lines) + end)

    def referee(self, silence: float = 0.05) -> Referee:
        return Referee(self.directory, silence=silence)


@pytest.fixture
def court(tmp_path: Path) -> Court:
    return Court(tmp_path)


def test_one_after_the_other_is_lawful(court: Court) -> None:
    court.acts("a", 1, 0, 2 * MS, 4 * MS)
    court.acts("b", 2, 9 * MS, 11 * MS)
    referee = court.referee()
    assert [(spell.owner.node, spell.first, spell.last) for spell in referee.spells("feed")] == [
        ("a", 0, 4 * MS),
        ("b", 9 * MS, 11 * MS),
    ]
    assert referee.overlaps("feed") == []
    assert referee.max_concurrency("feed") == 1
    assert [takeover.duration for takeover in referee.takeovers("feed")] == [5 * MS]
    assert [gap.duration for gap in referee.gaps("feed")] == [5 * MS]
    assert referee.tokens_rise("feed")
    referee.verdict()
    referee.verdict("feed")


def test_two_at_once_are_told_with_names_and_duration(court: Court) -> None:
    court.acts("a", 1, 0, 20 * MS, 40 * MS)
    court.acts("b", 2, 30 * MS, 50 * MS)
    referee = court.referee()
    (overlap,) = referee.overlaps("feed")
    assert overlap.duration == 10 * MS
    assert referee.max_concurrency("feed") == 2
    assert [takeover.duration for takeover in referee.takeovers("feed")] == [-10 * MS]
    with pytest.raises(AssertionError, match=r"a token 1 and b token 2 both acted for 10\.000000 ms"):
        referee.verdict("feed")


def test_an_overlap_of_one_microsecond_counts(court: Court) -> None:
    court.acts("a", 1, 0, 10 * MS + 1 * US)
    court.acts("b", 2, 10 * MS, 20 * MS)
    (overlap,) = court.referee().overlaps("feed")
    assert overlap.duration == 1 * US
    with pytest.raises(AssertionError, match=r"0\.001000 ms"):
        court.referee().verdict()


def test_an_overlap_of_one_nanosecond_counts(court: Court) -> None:
    court.acts("a", 1, 0, 10 * MS + 1)
    court.acts("b", 2, 10 * MS, 20 * MS)
    with pytest.raises(AssertionError, match=r"0\.000001 ms"):
        court.referee().verdict()


def test_spells_that_touch_do_not_overlap(court: Court) -> None:
    court.acts("a", 1, 0, 10 * MS)
    court.acts("b", 2, 10 * MS, 20 * MS)
    referee = court.referee()
    assert referee.overlaps("feed") == []
    assert referee.max_concurrency("feed") == 1
    assert referee.gaps("feed") == []
    referee.verdict()


def test_a_single_line_inside_anothers_spell_is_an_overlap_without_duration(court: Court) -> None:
    court.acts("a", 1, 0, 10 * MS, 20 * MS)
    court.acts("b", 2, 7 * MS)
    referee = court.referee()
    (overlap,) = referee.overlaps("feed")
    assert overlap.duration == 0
    assert referee.max_concurrency("feed") == 2
    with pytest.raises(AssertionError, match="both acted"):
        referee.verdict()


def test_a_single_line_a_nanosecond_into_anothers_spell_is_an_overlap(court: Court) -> None:
    court.acts("a", 1, 0, 10 * MS)
    court.acts("b", 2, 1)
    assert len(court.referee().overlaps("feed")) == 1


def test_a_single_line_where_anothers_spell_ends_is_lawful(court: Court) -> None:
    court.acts("a", 1, 0, 10 * MS)
    court.acts("b", 2, 10 * MS)
    court.referee().verdict()


def test_three_at_once_are_counted_as_three(court: Court) -> None:
    court.acts("a", 1, 0, 30 * MS)
    court.acts("b", 2, 10 * MS, 40 * MS)
    court.acts("c", 3, 20 * MS, 50 * MS)
    assert court.referee().max_concurrency("feed") == 3
    assert len(court.referee().overlaps("feed")) == 3


def test_overlaps_one_after_the_other_are_not_counted_as_three(court: Court) -> None:
    court.acts("a", 1, 0, 40 * MS, 80 * MS, what="beat")
    court.acts("b", 2, 10 * MS, 20 * MS)
    court.acts("c", 3, 30 * MS, 50 * MS)
    assert court.referee().max_concurrency("feed") == 2


def test_silence_ends_a_spell_and_another_may_act_in_between(court: Court) -> None:
    court.acts("a", 1, 0, 2 * MS, 500 * MS, 502 * MS)
    court.acts("b", 2, 100 * MS, 102 * MS)
    referee = court.referee()
    assert [spell.owner.node for spell in referee.spells("feed")] == ["a", "b", "a"]
    assert referee.overlaps("feed") == []
    # No two at one instant, but the old term came back after the new one: that is what the token is for.
    with pytest.raises(AssertionError, match="a token 1 began after b token 2, but its token is not greater"):
        referee.verdict()


def test_the_length_of_silence_that_ends_a_spell_is_exact(court: Court) -> None:
    court.acts("a", 1, 0, 50 * MS, 100 * MS + 1)
    assert [(spell.first, spell.last) for spell in court.referee(0.05).spells("feed")] == [
        (0, 50 * MS),
        (100 * MS + 1, 100 * MS + 1),
    ]


def test_a_stop_ends_a_spell_at_once(court: Court) -> None:
    court.acts("a", 1, 0)
    court.acts("a", 1, 2 * MS, what="stop")
    court.acts("a", 1, 4 * MS, what="start")
    assert [(spell.first, spell.last) for spell in court.referee().spells("feed")] == [(0, 2 * MS), (4 * MS, 4 * MS)]


def test_one_node_under_two_tokens_at_once_is_an_overlap(court: Court) -> None:
    court.acts("a", 1, 0, 10 * MS, file="feed.100")
    court.acts("a", 2, 5 * MS, 15 * MS, file="feed.101")
    with pytest.raises(AssertionError, match="a token 1 and a token 2 both acted"):
        court.referee().verdict()


def test_several_processes_of_one_node_are_one_owner(court: Court) -> None:
    court.acts("a", 1, 0, 10 * MS, singleton="ledger", file="ledger.100")
    court.acts("a", 1, 5 * MS, 15 * MS, singleton="ledger", file="ledger.101")
    referee = court.referee()
    assert referee.max_concurrency("ledger") == 1
    assert [(spell.first, spell.last) for spell in referee.spells("ledger")] == [(0, 15 * MS)]
    referee.verdict()


def test_singletons_are_judged_apart(court: Court) -> None:
    court.acts("a", 1, 0, 10 * MS, singleton="one")
    court.acts("b", 1, 0, 10 * MS, singleton="two")
    court.acts("c", 2, 5 * MS, singleton="two")
    court.referee().verdict("one")
    with pytest.raises(AssertionError, match="two: b token 1 and c token 2"):
        court.referee().verdict()


def test_a_token_that_falls_is_found(court: Court) -> None:
    court.acts("a", 4, 0)
    court.acts("b", 2, 100 * MS)
    referee = court.referee()
    assert not referee.tokens_rise("feed")
    assert len(referee.falling_tokens("feed")) == 1
    with pytest.raises(AssertionError, match="not greater"):
        referee.verdict()


def test_a_token_given_twice_is_found(court: Court) -> None:
    court.acts("a", 4, 0)
    court.acts("b", 4, 100 * MS)
    assert not court.referee().tokens_rise("feed")


def test_tokens_are_compared_as_numbers_led_by_the_timeline(court: Court) -> None:
    court.acts("a", "1:9", 0)
    court.acts("b", "1:10", 100 * MS)
    court.acts("c", "2:1", 200 * MS)
    assert court.referee().tokens_rise("feed")


def test_an_unknown_token_is_passed_over(court: Court) -> None:
    court.acts("a", "-", 0)
    court.acts("b", 1, 100 * MS)
    court.acts("c", "-", 200 * MS)
    assert court.referee().tokens_rise("feed")


def test_a_task_counts_from_its_start_to_its_end_however_silent(court: Court) -> None:
    court.acts("a", 1, 0, what="task-start:m1")
    court.acts("a", 1, 3_000 * MS, what="task-end:m1")
    court.acts("b", 2, 1_000 * MS, what="task-start:m2")
    court.acts("b", 2, 1_001 * MS, what="task-end:m2")
    (overlap,) = court.referee().overlaps("feed")
    assert overlap.duration == 1 * MS


def test_a_task_that_was_killed_counts_up_to_the_last_line_of_its_process(court: Court) -> None:
    court.acts("a", 1, 0, what="task-start:m1")
    court.acts("a", 1, 400 * MS)
    court.acts("b", 2, 400 * MS)
    court.acts("b", 2, 600 * MS)
    referee = court.referee()
    assert [(run.first, run.last, run.finished) for run in referee.task_runs()] == [(0, 400 * MS, False)]
    referee.verdict()
    court.acts("c", 3, 200 * MS)
    assert len(court.referee().overlaps("feed")) == 1


def test_a_lost_message_is_named(court: Court) -> None:
    court.acts("a", 1, 0, what="task-start:m1")
    court.acts("a", 1, 1 * MS, what="task-end:m1")
    court.acts("a", 1, 2 * MS, what="task-start:m2")
    court.acts("a", 1, 3 * MS, what="task-abort:m2")
    court.acts("a", 1, 4 * MS, what="task-start:m3")
    assert court.referee().missing(["m1", "m2", "m3", "m4"]) == ["m2", "m3", "m4"]


def test_a_message_that_ran_twice_is_named_and_is_not_missing(court: Court) -> None:
    for node, start in (("a", 0), ("b", 100 * MS)):
        court.acts(node, 1, start, what="task-start:m1")
        court.acts(node, 1, start + MS, what="task-end:m1")
    referee = court.referee()
    assert referee.duplicates() == {"m1": 2}
    assert referee.missing(["m1"]) == []
    assert referee.concurrent_runs() == []


def test_the_same_message_twice_at_once_is_found_within_one_node_too(court: Court) -> None:
    court.acts("a", 1, 0, what="task-start:m1", file="feed.100")
    court.acts("a", 1, 10 * MS, what="task-end:m1", file="feed.100")
    court.acts("a", 1, 5 * MS, what="task-start:m1", file="feed.101")
    court.acts("a", 1, 15 * MS, what="task-end:m1", file="feed.101")
    referee = court.referee()
    assert len(referee.concurrent_runs()) == 1
    assert referee.overlaps("feed") == []


def test_two_runs_of_a_message_within_one_process_are_told_apart(court: Court) -> None:
    court.acts("a", 1, 0, 5 * MS, what="task-start:m1")
    court.acts("a", 1, 6 * MS, 9 * MS, what="task-end:m1")
    (pair,) = court.referee().concurrent_runs()
    assert [(run.first, run.last) for run in pair] == [(0, 6 * MS), (5 * MS, 9 * MS)]


@pytest.mark.parametrize("rest", ["1", "12345678", f"{40 * MS} feed a 1 be", f"{40 * MS} feed a 1 beat"])
def test_a_last_line_that_was_cut_short_is_left_out(court: Court, rest: str) -> None:
    court.acts("a", 1, 0, 10 * MS)
    court.lines("feed.a", rest, end="")
    court.acts("b", 2, 30 * MS, 50 * MS)
    referee = court.referee()
    assert [file.truncated for file in referee.files] == [True, False]
    assert referee.spells("feed")[0].last == 10 * MS
    referee.verdict()


def test_a_journal_that_is_nothing_but_a_line_cut_short_is_tolerated(court: Court) -> None:
    court.lines("feed.a", f"{MS} feed", end="")
    court.lines("feed.b", "", end="")
    assert court.referee().singletons == []


@pytest.mark.parametrize(
    "line",
    ["", "nonsense", "12 feed a 1", "12 feed a 1 dance", "x feed a 1 beat", "12 feed  1 beat", "12 feed a one beat"],
)
def test_a_malformed_line_elsewhere_is_an_error(court: Court, line: str) -> None:
    court.lines("feed.a", line, f"{MS} feed a 1 beat")
    with pytest.raises(JournalError, match=r"feed\.a\.0\.journal:1"):
        court.referee()


def test_an_end_without_a_start_is_an_error(court: Court) -> None:
    court.acts("a", 1, 0, what="task-end:m1")
    with pytest.raises(JournalError, match="without a start"):
        court.referee()


def test_nothing_seen_is_no_acquittal(court: Court) -> None:
    with pytest.raises(AssertionError, match="no singleton was seen acting"):
        court.referee().verdict()
    court.acts("a", 1, 0)
    with pytest.raises(AssertionError, match=r"other was seen acting .* \(seen: feed\)|other was seen acting"):
        court.referee().verdict("feed", "other")


def test_the_report_tells_all(court: Court) -> None:
    court.acts("a", 1, 0, 20 * MS, 40 * MS)
    court.acts("b", 1, 30 * MS, 50 * MS)
    court.acts("c", 3, 250 * MS, what="task-start:m1")
    court.acts("c", 3, 260 * MS, what="task-end:m1")
    report = court.referee().report()
    assert "feed: 3 spells of 3 owners in 0.260 s, at most 2 at once" in report
    assert "OVERLAP a token 1 and b token 1 both acted for 10.000000 ms" in report
    assert "TOKEN b token 1 began after a token 1" in report
    assert "takeovers: -10.000, 200.000 ms" in report
    assert "nobody: 1 times, at most 200.000 ms" in report
    assert "tasks: 1 runs, 1 finished" in report


def test_what_a_journal_writes_the_referee_reads(tmp_path: Path) -> None:
    before = now_ns()
    with Journal.open(tmp_path, "a/feed") as journal, Journal.open(tmp_path, "a/feed") as second:
        journal.write("a/feed", os.getpid(), 7, "start")
        with journal.task("a/feed", os.getpid(), 7, "m1"):
            journal.write("a/feed", os.getpid(), 7, "beat")
        with pytest.raises(ZeroDivisionError), second.task("a/feed", os.getpid(), 7, "m2"):
            raise ZeroDivisionError
        journal.write("a/feed", os.getpid(), 7, "stop")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"a%2Ffeed.{os.getpid()}.{number}.journal" for number in (0, 1)
    ]
    referee = Referee(tmp_path)
    (spell,) = referee.spells("a/feed")
    assert (spell.lines, spell.owner.node, spell.owner.token) == (7, str(os.getpid()), "7")
    assert before <= spell.first <= spell.last <= now_ns()
    assert [(run.task_id, run.finished) for run in referee.task_runs()] == [("m1", True), ("m2", False)]
    referee.verdict("a/feed")


def test_a_journal_appends_to_what_is_there(tmp_path: Path) -> None:
    for _ in range(2):
        with Journal(tmp_path / "feed.1.0.journal") as journal:
            journal.write("feed", "a", 1, "beat")
    assert Referee(tmp_path).spells("feed")[0].lines == 2


@pytest.mark.parametrize("field", ["", "two words", "new\nline", " "])
def test_a_journal_refuses_what_could_not_be_read_back(tmp_path: Path, field: str) -> None:
    with Journal(tmp_path / "feed.1.0.journal") as journal, pytest.raises(ValueError, match="one word"):
        journal.write("feed", field, 1, "beat")
    assert (tmp_path / "feed.1.0.journal").read_bytes() == b""
