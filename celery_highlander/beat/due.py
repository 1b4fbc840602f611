"""When the ticks of a schedule are due, and which of those that were missed are made up for; pure, no I/O.

A tick is keyed by the instant at which it is due, so that instant must not depend on who computes it, or when. For
Celery's own schedules it follows from the tick before it: an interval keeps its grid (Celery counts from when beat got
round to it, and drifts), a crontab and a solar event are what they are. Schedules of other classes can only be asked
whether they are due *now*: their ticks are due when they were first seen to be.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Literal

from celery.schedules import crontab, schedule, solar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery.schedules import BaseSchedule

Policy = Literal["latest", "all", "skip"]
POLICIES: tuple[Policy, ...] = ("latest", "all", "skip")

STEPS = 10_000
"""How many missed ticks of a crontab are looked at in one go."""

_HOURS = 24


@dataclass(frozen=True, slots=True)
class Missed:
    """What a look at an entry found.

    Attributes:
        ticks: when the ticks are due that are to be published, the oldest one first.
        skipped: how many others were due.
        last: the last instant that was accounted for.
        next: when the entry has to be looked at again.
    """

    ticks: tuple[datetime, ...]
    skipped: int
    last: datetime
    next: datetime


def look(
    ticker: BaseSchedule,
    last: datetime,
    now: datetime,
    policy: Policy,
    *,
    grace: float | None,
    acting_since: datetime,
    limit: int,
) -> Missed:
    """Return which ticks of a schedule are to be published.

    Args:
        ticker: the schedule.
        last: the last tick that was accounted for.
        now: the present.
        policy: `latest`: of all that are due the newest one; `all`: each of them; `skip`: as `latest`, without those
            that were due before `acting_since`.
        grace: seconds after which a tick is too old to be published; None: never.
        acting_since: since when this beat acts.
        limit: with `all`, how many ticks to return at most; the rest is found by the next look.

    Raises:
        Exception: whatever a schedule of the application raises.
    """
    if not is_predictable(ticker):
        return _observe(ticker, last, now)
    oldest = None if grace is None else now - timedelta(seconds=grace)
    if policy == "skip":
        oldest = acting_since if oldest is None else max(oldest, acting_since)
    if _is_grid(ticker):
        return _count(ticker.run_every, last.astimezone(timezone.utc), now, oldest, limit if policy == "all" else None)
    due: list[datetime] = []
    skipped = 0
    following = last
    for seen, following in enumerate(_after(ticker, last)):
        if following > now or seen == STEPS or (policy == "all" and len(due) == limit):
            break
        last = following
        if oldest is not None and following < oldest:
            skipped += 1
        elif policy == "all":
            due.append(following)
        else:
            skipped += len(due)
            due = [following]
    if following <= now and policy != "all" and due:
        skipped += len(due)  # there are newer ones
        due = []
    return Missed(tuple(due), skipped, last, following)


def _count(every: timedelta, last: datetime, now: datetime, oldest: datetime | None, limit: int | None) -> Missed:
    """Return what was missed on the grid of an interval: so many ticks since `oldest`, or the newest one (None)."""
    missed = max(0, (now - last) // every)
    old = 0 if oldest is None else min(missed, max(0, -((last - oldest) // every) - 1))  # due before `oldest`
    if limit is None:
        taken = range(max(missed, old + 1), missed + 1)
        skipped = missed - len(taken)
    else:
        missed = min(missed, old + limit)
        taken, skipped = range(old + 1, missed + 1), old
    ticks = tuple(last + number * every for number in taken)
    return Missed(ticks, skipped, last + missed * every, last + (missed + 1) * every)


def is_predictable(ticker: BaseSchedule) -> bool:
    """Whether the instants at which a schedule is due follow from each other."""
    kind = type(ticker)
    if kind is schedule:
        return bool(ticker.run_every > timedelta(0))
    return kind in (crontab, solar)


def _is_grid(ticker: Any) -> bool:
    """Whether a predictable schedule is an interval that counts from the tick before."""
    return type(ticker) is schedule and not ticker.relative


def _after(ticker: BaseSchedule, last: datetime) -> Iterator[datetime]:
    """Yield when a schedule is due after `last`, for ever."""
    while True:
        following = next_due(ticker, last)
        if following <= last:  # a schedule that does not move on would be due for ever
            following = last + timedelta(seconds=1)
        last = following
        yield following


def next_due(ticker: BaseSchedule, last: datetime) -> datetime:
    """Return the first instant after the tick at `last` at which a predictable schedule is due, in UTC."""
    if isinstance(ticker, crontab):
        return _next_crontab(ticker, last)
    if isinstance(ticker, schedule) and not ticker.relative:
        following: datetime = last.astimezone(timezone.utc) + ticker.run_every
        return following
    # What is left until the next tick, seen from the present one.
    local = last.astimezone(ticker.tz)
    left: timedelta = _seen_at(ticker, local).remaining_estimate(local)
    return last.astimezone(timezone.utc) + left


def _next_crontab(ticker: crontab, last: datetime) -> datetime:
    """Return the next match, by the clock on the wall.

    An hour that a change of the clocks repeats, or leaves out, is treated as cron does it: what runs in every hour goes
    on in real time, and what has its hours runs once. (Celery's own arithmetic has nothing due in a repeated hour.)
    """
    zone = ticker.tz
    following = _match(ticker, last.astimezone(zone))
    if len(ticker.hour) < _HOURS:
        return following
    offset = last.astimezone(zone).utcoffset()
    if offset is None or following.astimezone(zone).utcoffset() == offset == (last + _DAY).astimezone(zone).utcoffset():
        return following
    steady = _match(ticker, last.astimezone(timezone(offset)))
    if steady.astimezone(zone).utcoffset() == offset:
        return steady
    change = _change(zone, last, steady)
    after = timezone(change.astimezone(zone).utcoffset() or timedelta(0))
    return _match(ticker, (change - timedelta(seconds=1)).astimezone(after))


_DAY = timedelta(days=1)


def _match(ticker: crontab, last: datetime) -> datetime:
    """Return the first match after `last` in the time zone of `last`."""
    start, delta, _ = _seen_at(ticker, last, zone=last.tzinfo).remaining_delta(last)
    following: datetime = start + delta
    return following.astimezone(timezone.utc)


def _change(zone: Any, before: datetime, after: datetime) -> datetime:
    """Return the instant at which the zone's clocks change between two instants, to the second."""
    before, after = before.astimezone(timezone.utc).replace(microsecond=0), after.astimezone(timezone.utc)
    offset = before.astimezone(zone).utcoffset()
    while after - before > timedelta(seconds=1):
        middle = before + timedelta(seconds=int((after - before).total_seconds() / 2))
        if middle.astimezone(zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return after


def _seen_at(ticker: Any, now: datetime, zone: Any = None) -> Any:
    """Return the schedule as it is at `now`; a copy, for schedules are shared."""
    copied = object.__new__(type(ticker))
    copied.__dict__.update(ticker.__dict__)
    copied.nowfun = lambda: now
    if zone is not None:
        copied.__dict__["tz"] = zone
    return copied


def _observe(ticker: Any, last: datetime, now: datetime) -> Missed:
    """Ask a schedule whether it is due, as Celery does."""
    is_due, left = ticker.is_due(last.astimezone(ticker.tz) if hasattr(ticker, "tz") else last)
    wait = timedelta(seconds=max(float(left or 0.0), 0.001))
    return Missed((now,), 0, now, now + wait) if is_due else Missed((), 0, last, now + wait)
