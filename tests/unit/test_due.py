"""When ticks are due: grids, crontabs over changes of the clocks, and what is made up for."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.schedules import crontab, schedule, solar
from hypothesis import given
from hypothesis import strategies as st

from celery_highlander.beat import due
from celery_highlander.beat.due import Missed, Policy, look, next_due

if TYPE_CHECKING:
    from celery.schedules import BaseSchedule

UTC = timezone.utc
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
ZONES = ("America/New_York", "Europe/Berlin", "Australia/Lord_Howe")


def app(zone: str = "UTC") -> Celery:
    made = Celery("due", set_as_current=False)
    made.conf.timezone = zone
    return made


def cron(zone: str = "UTC", **fields: Any) -> crontab:
    return crontab(app=app(zone), **fields)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def seen(ticker: BaseSchedule, last: datetime, now: datetime, policy: Policy = "latest", **more: Any) -> Missed:
    options: dict[str, Any] = {"grace": None, "acting_since": last, "limit": due.STEPS, **more}
    return look(ticker, last, now, policy, **options)


def ticks(ticker: BaseSchedule, start: datetime, end: datetime) -> list[datetime]:
    return list(seen(ticker, start, end, "all").ticks)


EVERY = schedule(10.0, app=app())


@pytest.mark.parametrize(
    ("policy", "published", "skipped"),
    [("latest", [30], 2), ("all", [10, 20, 30], 0), ("skip", [30], 2)],
)
def test_of_missed_ticks_those_of_the_policy_are_made_up_for(
    policy: Policy, published: list[int], skipped: int
) -> None:
    found = seen(EVERY, NOON, at(35), policy)
    assert found == Missed(tuple(map(at, published)), skipped, at(30), at(40))


def test_what_was_due_before_this_beat_acted_is_skipped_under_skip_alone() -> None:
    assert seen(EVERY, NOON, at(35), "skip", acting_since=at(31)) == Missed((), 3, at(30), at(40))
    assert seen(EVERY, NOON, at(35), "skip", acting_since=at(25)).ticks == (at(30),)
    assert seen(EVERY, NOON, at(35), "all", acting_since=at(31)).skipped == 0


def test_what_is_older_than_the_grace_time_is_skipped() -> None:
    assert seen(EVERY, NOON, at(39), "all", grace=20.0) == Missed((at(20), at(30)), 1, at(30), at(40))
    assert seen(EVERY, NOON, at(39), "latest", grace=5.0) == Missed((), 3, at(30), at(40))


def test_nothing_is_due_before_its_time() -> None:
    assert seen(EVERY, NOON, at(9.999)) == Missed((), 0, NOON, at(10))


def test_many_missed_ticks_are_taken_in_portions() -> None:
    found = seen(EVERY, NOON, at(100), "all", limit=3)
    assert found == Missed((at(10), at(20), at(30)), 0, at(30), at(40))
    slow = schedule(1.0, relative=True, app=app())  # each of its instants follows from the one before
    found = seen(slow, NOON, at(due.STEPS + 500.5))
    assert found == Missed((), due.STEPS, at(due.STEPS), at(due.STEPS + 1))  # the latest one is yet to come
    found = seen(slow, found.last, at(due.STEPS + 500.5))
    assert (found.ticks, found.skipped) == ((at(due.STEPS + 500),), 499)


def test_the_limit_is_for_those_that_are_made_up_for_one_by_one() -> None:
    slow = schedule(10.0, relative=True, app=app())
    for ticker in (EVERY, slow):
        assert seen(ticker, NOON, at(35), "latest", limit=1) == Missed((at(30),), 2, at(30), at(40))


@given(
    policy=st.sampled_from(due.POLICIES),
    behind=st.floats(0, 100),
    grace=st.none() | st.floats(0, 120),
    acted=st.floats(-10, 110),
    limit=st.integers(1, 12),
)
def test_the_grid_of_an_interval_is_counted_as_if_one_went_along_it(
    policy: Policy, behind: float, grace: float | None, acted: float, limit: int
) -> None:
    every = timedelta(seconds=7)
    options: dict[str, Any] = {"grace": grace, "acting_since": at(acted), "limit": limit}
    counted = seen(schedule(every, app=app()), NOON, at(behind), policy, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(due, "_is_grid", lambda _: False)
        assert counted == seen(schedule(every, app=app()), NOON, at(behind), policy, **options)


@given(st.lists(st.floats(0.01, 40), max_size=30), st.sampled_from([0.3, 1.0, 7.0]))
def test_however_often_one_looks_the_ticks_are_the_same(gaps: list[float], every: float) -> None:
    ticker = schedule(every, app=app())
    last = now = NOON
    found: list[datetime] = []
    for gap in gaps:
        now += timedelta(seconds=gap)
        missed = seen(ticker, last, now, "all")
        found += missed.ticks
        last = missed.last
    assert found == ticks(ticker, NOON, now)


def test_a_relative_interval_is_due_on_the_clock() -> None:
    hourly = schedule(timedelta(hours=1), relative=True, app=app("Europe/Berlin"))
    assert next_due(hourly, NOON + timedelta(minutes=17)) == NOON + timedelta(hours=1)
    daily = schedule(timedelta(days=1), relative=True, app=app("Europe/Berlin"))
    assert next_due(daily, NOON) == datetime(2026, 6, 1, 22, tzinfo=UTC)  # midnight in Berlin


def test_an_interval_of_nothing_is_due_whenever_one_looks() -> None:
    found = seen(schedule(0.0, app=app()), NOON, at(3))
    assert found.ticks == (at(3),)
    assert found.next > at(3)


CHANGES = {
    "America/New_York": (datetime(2026, 3, 8, 7, tzinfo=UTC), datetime(2026, 11, 1, 6, tzinfo=UTC)),
    "Europe/Berlin": (datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 10, 25, 1, tzinfo=UTC)),
    "Australia/Lord_Howe": (datetime(2026, 10, 3, 15, 30, tzinfo=UTC), datetime(2026, 4, 4, 15, tzinfo=UTC)),
}


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("which", [0, 1], ids=["forward", "back"])
def test_what_runs_in_every_hour_runs_in_real_time_when_the_clocks_change(zone: str, which: int) -> None:
    change = CHANGES[zone][which]
    start = change - timedelta(hours=5, seconds=1)
    found = ticks(cron(zone, minute="*/15"), start, change + timedelta(hours=5))
    expected = [start + timedelta(seconds=1, minutes=15 * n) for n in range(len(found))]
    assert found == expected
    assert len(found) == 41


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("which", [0, 1], ids=["forward", "back"])
@pytest.mark.parametrize(("hour", "minute"), [(1, 30), (1, 45), (2, 15), (2, 30), (3, 0), (23, 59), (0, 0)])
def test_what_runs_once_a_day_runs_once_when_the_clocks_change(zone: str, which: int, hour: int, minute: int) -> None:
    day = CHANGES[zone][which].astimezone(ZoneInfo(zone)).replace(hour=0, minute=0)
    start = (day.replace(tzinfo=None) - timedelta(seconds=1)).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    end = (day.replace(tzinfo=None) + timedelta(days=1, seconds=-1)).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    assert len(ticks(cron(zone, hour=hour, minute=minute), start, end)) == 1


@given(
    st.integers(0, 365 * 86400).map(lambda seconds: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)),
    st.sampled_from([("*/5", "*"), ("0", "*/4"), ("17", "3,22"), ("*", "*")]),
    st.sampled_from(ZONES),
)
def test_a_crontab_agrees_with_celery_where_no_clock_changes(
    last: datetime, fields: tuple[str, str], zone: str
) -> None:
    minute, hour = fields
    ticker = cron(zone, minute=minute, hour=hour)
    following = next_due(ticker, last)
    local = last.astimezone(ZoneInfo(zone))
    offsets = {(last + timedelta(hours=n)).astimezone(ZoneInfo(zone)).utcoffset() for n in (-30, 0, 30)}
    if len(offsets) == 1:
        ticker.nowfun = lambda: local
        assert following == last + ticker.remaining_estimate(local)
    assert following > last


def test_the_sun_is_asked_where_it_is() -> None:
    sunrise = solar("sunrise", 52.5, 13.4, app=app("Europe/Berlin"))
    found = ticks(sunrise, NOON, NOON + timedelta(days=3))
    assert [tick.date().day for tick in found] == [2, 3, 4]
    assert {tick.astimezone(ZoneInfo("Europe/Berlin")).hour for tick in found} == {4}


class EveryOther(schedule):
    """A schedule of the application's own, which can only be asked whether it is due."""

    def is_due(self, last_run_at: datetime) -> tuple[bool, float]:
        left = 10.0 - (NOW[0] - last_run_at).total_seconds()
        return (True, 10.0) if left <= 0 else (False, left)


NOW = [NOON]


def test_a_schedule_of_the_applications_own_is_due_when_it_says_so() -> None:
    ticker = EveryOther(10.0, app=app())
    NOW[0] = at(4)
    assert seen(ticker, NOON, at(4)) == Missed((), 0, NOON, at(10))
    NOW[0] = at(12)
    assert seen(ticker, NOON, at(12)) == Missed((at(12),), 0, at(12), at(22))
