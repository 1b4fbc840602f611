"""The list of planted bugs of singleton runs: what each gets wrong, as a small patch of the code that gets it right."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Any

from celery_highlander.keeper import run_table as r
from celery_highlander.store.runs import Registration, Tried
from tests.planted.patching import Bug, Soil
from tests.simulator.runs.batch import failure_of
from tests.simulator.runs.database import Row, RunSession

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

HELD, LOST = r.Phase.HELD, r.Phase.LOST


def _after(soil: Soil, name: str, then: Callable[[Any], object]) -> None:
    """Let a method of the table be followed by `then`."""

    def both(self: r.RunTable, *arguments: Any) -> Any:
        result = original(self, *arguments)
        then(self)
        return result

    original = getattr(r.RunTable, name)
    soil.attribute(r.RunTable, name, both)


def _hears(soil: Soil, change: Callable[[Any, float], r.RunEvent]) -> None:
    """Let the table hear something else."""

    def handle(self: r.RunTable, event: r.RunEvent, now: float) -> list[r.RunEffect]:
        return original(self, change(event, now), now)

    original = r.RunTable.handle
    soil.attribute(r.RunTable, "handle", handle)


def _wants(soil: Soil, change: Callable[[r.RunEffect], r.RunEffect]) -> None:
    """Let something else be done than the table wants."""

    def handle(self: r.RunTable, event: r.RunEvent, now: float) -> list[r.RunEffect]:
        return [change(effect) for effect in original(self, event, now)]

    original = r.RunTable.handle
    soil.attribute(r.RunTable, "handle", handle)


# -- debts -------------------------------------------------------------------------------------------------------------


def _heartbeats_not_read_again(soil: Soil) -> None:
    def owed(self: Any, holder: str, lease: float, now: float, _effects: list[r.RunEffect]) -> None:
        known = self._sightings.setdefault(holder, r._Sighting(None, lease, now))
        known.is_owed = known.is_final = True

    soil.attribute(r.RunTable, "_owed", owed)


def _rows_deleted_with_the_session(soil: Soil) -> None:
    def forget(effect: r.RunEffect) -> r.RunEffect:
        return r.MarkRuns(dict.fromkeys(effect.ended, frozenset())) if isinstance(effect, r.MarkRuns) else effect

    _wants(soil, forget)


def _own_debts_ignored(soil: Soil) -> None:
    def paid(self: Any, now: float) -> frozenset[str]:
        return original(self, now) | {run.holder for run in self._running.values() if run.phase is LOST}

    original = r.RunTable._paid
    soil.attribute(r.RunTable, "_paid", paid)
    _after(soil, "_session_lost", lambda table: table._on_base.clear())
    soil.attribute(r.RunTable, "_leave_base", lambda _self, _base: None)


def _debt_named_by_a_snapshot(soil: Soil) -> None:
    def owed(self: RunSession, key: int, _latest: Row, before: Mapping[int, Row]) -> Tried:
        self._unlock(key)
        return Tried(key, False, *(before.get(key) or (None, 0.0, None)))

    soil.attribute(RunSession, "_owed", owed)


def _lock_not_given_back_at_a_debt(soil: Soil) -> None:
    soil.attribute(RunSession, "_owed", lambda _self, key, latest, _before: Tried(key, False, *latest))


def _clock_rates_ignored(soil: Soil) -> None:
    soil.attribute(r, "wait_for", lambda duration: duration)


# -- the lease ---------------------------------------------------------------------------------------------------------


def _lease_from_the_answer(soil: Soil) -> None:
    def late(event: Any, now: float) -> r.RunEvent:
        return replace(event, sent_at=now) if isinstance(event, (r.Beaten, r.Registered)) else event

    _hears(soil, late)


def _begun_after_the_kill_deadline(soil: Soil) -> None:
    def got(self: Any, *arguments: Any) -> None:
        deadline, self._lease_deadline = self._lease_deadline, inf
        original(self, *arguments)
        self._lease_deadline = deadline

    original = r.RunTable._got
    soil.attribute(r.RunTable, "_got", got)


def _kills_not_due(soil: Soil) -> None:
    def next_deadline(self: Any) -> float:
        running, self._running = self._running, {}
        due = original(self)
        self._running = running
        return due

    original = r.RunTable.next_deadline
    soil.attribute(r.RunTable, "next_deadline", next_deadline)


def _resumed_under_the_next_session(soil: Soil) -> None:
    def resume(table: Any) -> None:
        for run in table._running.values():
            run.phase, run.kill_at = HELD, inf

    _after(soil, "_session_lost", resume)


def _killed_at_the_end_of_the_lease(soil: Soil) -> None:
    soil.attribute(r.RunTable, "kill_deadline", property(lambda self: self._lease_deadline))


# -- tables that lost their rows ---------------------------------------------------------------------------------------


def _settled_mark_ignored(soil: Soil) -> None:
    def settled(event: Any, _now: float) -> r.RunEvent:
        if isinstance(event, r.Registered):
            return replace(event, found=Registration(True, event.found.longest_lease))
        return event  # type: ignore[no-any-return]  # it is an event

    _hears(soil, settled)


def _own_lease_waited_for(soil: Soil) -> None:
    def registered(self: Any, sent_at: float, found: Registration, now: float, effects: list[r.RunEffect]) -> None:
        original(self, sent_at, Registration(found.settled, self._timing.lease), now, effects)

    original = r.RunTable._registered
    soil.attribute(r.RunTable, "_registered", registered)


# -- keys of this node -------------------------------------------------------------------------------------------------


def _own_keys_tried_again(soil: Soil) -> None:
    _after(soil, "_got", lambda table: table._on_base.clear())
    soil.attribute(r.RunTable, "_leave_base", lambda _self, _base: None)


def _own_slots_not_left_out(soil: Soil) -> None:
    def include(effect: r.RunEffect) -> r.RunEffect:
        return replace(effect, excluded=frozenset()) if isinstance(effect, r.Take) else effect

    _wants(soil, include)


def _run_that_ended_meanwhile_is_begun(soil: Soil) -> None:
    def end(self: Any, run_id: r.RunId, now: float, effects: list[r.RunEffect]) -> list[int]:
        run = self._runs.get(run_id)
        return [] if run is not None and run.phase is r.Phase.ASKED else original(self, run_id, now, effects)

    original = r.RunTable._end
    soil.attribute(r.RunTable, "_end", end)


def _waits_without_end_for_a_table_that_is_blocked(soil: Soil) -> None:
    def next_deadline(self: Any) -> float:
        idle_at = self._idle_since + r.IDLE_DURATION if self._is_registered else inf
        return min(original(self), idle_at)

    original = r.RunTable.next_deadline
    soil.attribute(r.RunTable, "next_deadline", next_deadline)


RUN_BUGS: tuple[Bug, ...] = tuple(
    Bug(f"runs: {name}", plant, profile, failure_of)
    for name, plant, profile in (
        ("heartbeats are not read again", _heartbeats_not_read_again, "pauses"),
        ("rows are deleted with the session", _rows_deleted_with_the_session, "sessions"),
        ("debts of the own node are ignored", _own_debts_ignored, "sessions"),
        ("a debt is named by a snapshot", _debt_named_by_a_snapshot, "stalls"),
        ("a lock is not given back at a debt", _lock_not_given_back_at_a_debt, None),
        ("clock rates ignored", _clock_rates_ignored, "clocks"),
        ("lease counted from the answer", _lease_from_the_answer, None),
        ("begun after the kill deadline", _begun_after_the_kill_deadline, "pauses"),
        ("kills are not due", _kills_not_due, "sessions"),
        ("resumed under the next session", _resumed_under_the_next_session, "sessions"),
        ("killed at the end of the lease", _killed_at_the_end_of_the_lease, "pauses"),
        ("settled mark ignored", _settled_mark_ignored, "servers"),
        ("own lease waited for, not the longest", _own_lease_waited_for, "leases"),
        ("own keys are tried again", _own_keys_tried_again, None),
        ("own slots are not left out", _own_slots_not_left_out, "slots"),
        ("a run that ended meanwhile is begun", _run_that_ended_meanwhile_is_begun, None),
        ("due without end while blocked", _waits_without_end_for_a_table_that_is_blocked, "clocks"),
    )
)
