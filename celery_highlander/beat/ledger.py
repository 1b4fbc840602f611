"""The scheduler with the tick ledger: claims what is due together, publishes it, and writes down that it did.

The order is what makes a tick neither lost nor doubled. It is claimed, with its entry's `last_run_at`, by the present
term; then published; then settled. Whoever dies in between leaves a claimed tick that is not settled, and the next
leader publishes it again, as another copy of the same message: the same task id, and a header by which workers with
the plugin run one copy alone.
"""

from __future__ import annotations

import copy
import heapq
import logging
import time
import uuid
from collections import Counter, deque
from datetime import datetime, timedelta, timezone
from math import inf
from typing import TYPE_CHECKING, Any

from celery.beat import Scheduler, SchedulingError
from celery.schedules import crontab
from celery.utils.time import maybe_make_aware

from celery_highlander.beat.due import Missed, is_predictable, look
from celery_highlander.beat.events import tell_of_skipped
from celery_highlander.beat.publishing import uninterrupted
from celery_highlander.config import OTHERS
from celery_highlander.store.ticks import Advance, Tick, tick_id
from celery_highlander.worker.counting import Counts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery import Celery
    from celery.beat import ScheduleEntry

    from celery_highlander.beat.connection import LedgerConnection
    from celery_highlander.beat.publishing import Publishing
    from celery_highlander.config import Settings

logger = logging.getLogger("celery_highlander")

HEADER = "highlander_tick"
"""The header of a tick's message: `id` of the tick, `copy` of the message, and `due_at` in ISO 8601."""

BATCH = 100
"""How many ticks are claimed together, at most, so that few are open when a beat dies."""

AHEAD = 0.010
"""Seconds before it is due at which a tick is claimed, so that it need not wait for the database when it is due."""

NAMED = 10
"""How many entries a line of the log names, at most."""

SAY_INTERVAL = 1.0
"""Seconds between two words on what was skipped."""

PRUNE_INTERVAL = 60.0
"""Seconds between two looks for ticks that nobody needs any more."""

_AHEAD = timedelta(seconds=AHEAD)


class LedgerScheduler(Scheduler):
    """The scheduler of one term.

    Attributes:
        trouble: why the last pass could not publish; empty if it could.
    """

    def __init__(
        self, app: Celery, *, ledger: LedgerConnection, publishing: Publishing, settings: Settings, **kwargs: Any
    ) -> None:
        self.trouble = ""
        self._ledger = ledger
        self._publishing = publishing
        self._settings = settings
        self._acting_since = datetime.fromtimestamp(publishing.elected_at, timezone.utc)
        self._last: dict[str, datetime] = {}
        self._queue: list[tuple[datetime, int, str]] = []  # when to look at which entry
        self._numbers = 0
        self._open: deque[Tick] = deque()  # claimed, not settled
        self._present: Tick | None = None
        self._outcomes: dict[str, str | None] = {}
        self._counts = Counts()
        self._told: dict[str, str] = {}  # entry: what was logged of it last
        self._skipped: Counter[str] = Counter()  # not told of yet
        self._skipped_up_to = self._acting_since
        self._say_at = 0.0
        self._prune_at = datetime.now(timezone.utc) + timedelta(seconds=PRUNE_INTERVAL)
        super().__init__(app, **kwargs)

    # -- beginning -----------------------------------------------------------------------------------------------------

    def setup_schedule(self) -> None:
        """Take the entries from the configuration, and their state from the ledger."""
        self.merge_inplace(self.app.conf.beat_schedule)
        self.install_default_entries(self.schedule)
        self._check_names()
        states = self._ledger.load({name: _aware(entry.last_run_at) for name, entry in self.schedule.items()})
        for name, state in states.items():
            entry = self.schedule[name]
            entry.last_run_at, entry.total_run_count = state.last_run_at, state.run_count
            self._last[name] = state.last_run_at.astimezone(timezone.utc)
            self._plan(name, self._last[name])
        for tick in self._ledger.open_ticks():
            if tick.entry in self.schedule:
                logger.info(
                    "beat: publishing %r of %s again, which was not settled", tick.entry, tick.due_at.isoformat(),
                    extra={"action": "tick_again"},
                )  # fmt: skip
                self._open.append(tick)
            else:
                logger.warning(
                    "beat: the entry %r is gone, and with it its tick of %s", tick.entry, tick.due_at.isoformat(),
                    extra={"action": "tick_dropped"},
                )  # fmt: skip
                self._outcomes[tick.id] = "the entry is not in the schedule any more"
        self._settle()

    def _check_names(self) -> None:
        for option in (self._settings.beat_missed, self._settings.beat_grace_time):
            for name in option if isinstance(option, dict) else ():
                if name != OTHERS and name not in self.schedule:
                    logger.warning("beat: highlander_beat_missed or _grace_time names %r, which is no entry", name)

    def _plan(self, name: str, at: datetime) -> None:
        if not is_predictable(self.schedule[name].schedule):
            at += _AHEAD  # it can only be asked what is due now, not what is about to be
        self._numbers += 1
        heapq.heappush(self._queue, (at, self._numbers, name))

    def add(self, **kwargs: Any) -> ScheduleEntry:
        """Add an entry while beat runs, as Celery's own."""
        entry: ScheduleEntry = super().add(**kwargs)
        state = self._ledger.load({entry.name: _aware(entry.last_run_at)})[entry.name]
        self._last[entry.name] = state.last_run_at.astimezone(timezone.utc)
        self._plan(entry.name, self._last[entry.name])
        return entry

    # -- ticking -------------------------------------------------------------------------------------------------------

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Publish what is due; return the seconds until the next tick.

        Raises:
            NotLeading: the term is over.
            StaleTermError: it is, and the database says so.
            Exception: the driver's own: what was claimed is known to the ledger alone.
        """
        self._publishing.check()
        if self._open:
            self._publish()
        else:
            self._claim()
        if self.trouble:
            return 0.0
        now = datetime.now(timezone.utc)
        if now >= self._prune_at:
            self._prune_at = now + timedelta(seconds=PRUNE_INTERVAL)
            self._ledger.seen(self.schedule)
            self._ledger.prune()
        if self._open:
            return 0.0
        wait = (self._queue[0][0] - now).total_seconds() - AHEAD if self._queue else self.max_interval
        return max(0.0, min(float(wait), float(self.max_interval), self._say_skipped()))

    def _claim(self) -> None:
        """Claim what is due, or about to be, and publish it."""
        now = datetime.now(timezone.utc)
        # Ahead of time only while nothing is late, and no entry by more than its next tick: `latest` would skip others.
        horizon = now + _AHEAD if self._queue and self._queue[0][0] > now else now
        advances: list[Advance] = []
        seen: list[tuple[str, datetime]] = []
        room = BATCH
        while self._queue and self._queue[0][0] <= horizon and room > 0:
            at, _, name = heapq.heappop(self._queue)
            entry = self.schedule.get(name)
            if entry is None:
                continue
            found = self._look(entry, max(now, at) if is_predictable(entry.schedule) else now, room)
            seen.append((name, found.next))
            if found.last == self._last[name]:
                continue
            self._last[name] = found.last
            ticks = tuple(Tick(tick_id(self._ledger.key, name, at), name, at) for at in found.ticks)
            room -= len(ticks)
            advances.append(Advance(name, found.last, found.skipped, ticks))
        for name, following in seen:  # afterwards: a claim holds one advance of an entry
            self._plan(name, following)
        if not advances:
            return
        self._note_skipped(advance for advance in advances if advance.skipped)
        self._say_skipped()
        claimed = self._ledger.claim(advances)
        mine = [tick for advance in advances for tick in advance.ticks if tick.id in claimed]
        self._open.extend(sorted(mine, key=lambda tick: tick.due_at))
        self._publish()

    def _look(self, entry: ScheduleEntry, now: datetime, limit: int) -> Missed:
        try:
            found = look(
                entry.schedule,
                self._last[entry.name],
                now,
                _of(self._settings.beat_missed, entry.name, "latest"),
                grace=self._grace(entry),
                acting_since=self._acting_since,
                limit=limit,
            )
        except Exception as error:  # noqa: BLE001  # one schedule that fails must not stop the others
            self._complain(entry.name, f"cannot say when it is due: {type(error).__name__}: {error}", error)
            last = self._last[entry.name]
            return Missed((), 0, last, now + timedelta(seconds=self.max_interval))
        if self._told.get(entry.name, "").startswith("cannot say"):
            del self._told[entry.name]
        return found

    def _grace(self, entry: ScheduleEntry) -> float | None:
        grace: float | None = _of(self._settings.beat_grace_time, entry.name, None)
        if grace is None and isinstance(entry.schedule, crontab):
            deadline: float | None = self.app.conf.beat_cron_starting_deadline
            return deadline
        return grace

    def _note_skipped(self, advances: Iterable[Advance]) -> None:
        for advance in advances:
            self._skipped[advance.entry] += advance.skipped
            self._skipped_up_to = max(self._skipped_up_to, advance.last_run_at)

    def _say_skipped(self, *, now: bool = False) -> float:
        """Tell what was skipped, at most once a second: of a schedule that is more than can be sent it is much.

        Returns:
            Seconds until the next word of it.
        """
        left = 0.0 if now else max(0.0, self._say_at - time.monotonic())
        if not self._skipped or left > 0:
            return left if self._skipped else inf
        skipped, self._skipped = self._skipped, Counter()
        self._say_at = time.monotonic() + SAY_INTERVAL
        self._counts.count("ticks_skipped_total", skipped.total())
        names = ", ".join(repr(name) for name in list(skipped)[:NAMED])
        logger.warning(
            "beat: skipped %d missed ticks of %s%s, up to %s",
            skipped.total(),
            names,
            f" and {len(skipped) - NAMED} other entries" if len(skipped) > NAMED else "",
            self._skipped_up_to.isoformat(),
            extra={"action": "ticks_skipped"},
        )
        if not now:  # else there may be no broker, and no time
            tell_of_skipped(self.app, skipped)
        self._counts.deliver()
        return inf

    # -- publishing ----------------------------------------------------------------------------------------------------

    def _publish(self) -> None:
        """Publish what is claimed, and settle it; on trouble with the broker the rest waits for the next pass."""
        if self.trouble:
            self._open = deque(self._ledger.again([tick.id for tick in self._open]))
            self.trouble = ""
        try:
            while self._open and not self.trouble:
                self._publish_one(self._open[0])
        finally:
            self._settle()
            self._counts.deliver()

    def _publish_one(self, tick: Tick) -> None:
        entry = self.schedule[tick.entry]
        early = (tick.due_at - datetime.now(timezone.utc)).total_seconds()
        if early > 0:
            time.sleep(min(early, AHEAD))  # not for longer: another node's clock may have claimed it
        self._publishing.check()
        try:
            producer = self._publishing.producer(self.Producer)
        except Exception as error:  # noqa: BLE001  # the transport's own, whichever it is
            self._broker_failed(error)
            return
        entry.last_run_at = tick.due_at
        with uninterrupted():
            self._present = tick
            self.apply_entry(entry, producer=producer)
            if not self.trouble:
                self._outcomes.setdefault(tick.id, None)
                self._counts.count("ticks_sent_total")
                late = (datetime.now(timezone.utc) - tick.due_at).total_seconds()
                self._counts.observe("tick_lateness_seconds", max(0.0, late))
                self._open.popleft()
                entry.total_run_count += 1

    def apply_async(self, entry: ScheduleEntry, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        """Publish an entry under the identity of its tick. Called by `apply_entry`, which others may have wrapped."""
        tick, self._present = self._present, None
        self._publishing.check()
        if tick is None:
            return super().apply_async(entry, producer=producer, advance=advance, **kwargs)
        marked = copy.copy(entry)
        marked.options = self._options_of(entry, tick)
        try:
            return super().apply_async(marked, producer=producer, advance=False, **kwargs)
        except SchedulingError as failure:
            error = failure.__cause__ or failure.__context__ or failure
            if self._publishing.failed_by(error):
                self._broker_failed(error)
            else:
                self._outcomes[tick.id] = f"{type(error).__name__}: {error}"
                self._complain(entry.name, f"cannot be published: {type(error).__name__}: {error}", error)
            return None

    def _options_of(self, entry: ScheduleEntry, tick: Tick) -> dict[str, Any]:
        mark = {"id": tick.id, "copy": str(uuid.uuid4()), "due_at": tick.due_at.astimezone(timezone.utc).isoformat()}
        options = {"task_id": tick.id, "periodic_task_name": entry.name, "retry": False, **entry.options}
        return {**options, "headers": {**(entry.options.get("headers") or {}), HEADER: mark}}

    def _broker_failed(self, error: BaseException) -> None:
        self.trouble = f"the broker does not take messages: {type(error).__name__}: {error}"
        self._publishing.disconnect()

    def _complain(self, name: str, reason: str, error: BaseException | None) -> None:
        """Log what is wrong with an entry: once, not with each tick."""
        if self._told.get(name) != reason:
            self._told[name] = reason
            logger.error("beat: the entry %r %s", name, reason, exc_info=error, extra={"action": "entry_failed"})

    def _settle(self) -> None:
        if self._outcomes:
            outcomes, self._outcomes = self._outcomes, {}
            self._ledger.settle(outcomes)

    # -- the end -------------------------------------------------------------------------------------------------------

    def reserve(self, entry: ScheduleEntry) -> ScheduleEntry:
        """The ledger has reserved the tick already."""
        return entry

    def sync(self) -> None:
        """The ledger has it all."""

    def close(self) -> None:
        """Let go of database and broker."""
        self._say_skipped(now=True)
        self._publishing.disconnect()
        self._ledger.close()


def _aware(moment: datetime) -> datetime:
    aware: datetime = maybe_make_aware(moment)
    return aware.astimezone(timezone.utc)


def _of(option: Any, name: str, default: Any) -> Any:
    """Return what a setting says for an entry."""
    return option.get(name, option.get(OTHERS, default)) if isinstance(option, dict) else option
