"""One node: a `RunTable`, its lock session, the processes with the runs, and a clock of its own."""

from __future__ import annotations

from itertools import count
from math import inf
from typing import TYPE_CHECKING

from celery_highlander.keeper import run_table as r
from tests.simulator.runs.link import Link

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulator.runs.plan import Call, Machine
    from tests.simulator.runs.schedule import Schedule

LATE = 0.005
"""Seconds by which a tick may be late."""


class Cell:
    """The lease cell of one keeper, which outlives it."""

    def __init__(self) -> None:
        self.deadline = 0.0
        self.looks_at = inf


class Run:
    """A process with one run, from its question to its end."""

    def __init__(self, node: Node, number: int, call: Call, limit: int) -> None:
        self.node = node
        self.incarnation = node.incarnation
        self.id = (1, number)
        self.call = call
        self.limit = limit
        self.cell = node.cell
        self.came_at = node.schedule.now
        self.losses = node.losses
        self.answer = ""
        self.link: Link | None = None
        self.told: float | None = None  # when it is killed, as it was told
        self.over = False

    def __str__(self) -> str:
        return f"run {self.id[1]} of {self.call.base} on node {self.node.number}"


class Node:
    """A keeper and its processes; the keeper may die and start anew, as another node."""

    def __init__(self, schedule: Schedule, number: int, machine: Machine) -> None:
        self.schedule = schedule
        self.number = number
        self.machine = machine
        self.timing = machine.timing
        self.incarnation = 0
        self.up = self.paused = False
        self.cut_until = self.slow_until = 0.0
        self.losses = 0
        self.runs: dict[r.RunId, Run] = {}
        self.renewed_then: Callable[[], None] | None = None  # what happens just after the next heartbeat
        self._numbers = count(1)
        self._sessions = count(1)
        self._last_clock = -inf
        self._tick_at = inf
        self._idle_ticks = 0
        self._backlog: list[tuple[Callable[..., None], tuple[object, ...]]] = []
        self.boot(0)

    # -- time ----------------------------------------------------------------------------------------------------------

    def clock(self) -> float:
        return self.machine.offset + self.machine.rate * self.schedule.now

    def when(self, clock: float) -> float:
        """Return the virtual time at which this node's clock shows `clock`."""
        return max(self.schedule.now, (clock - self.machine.offset) / self.machine.rate)

    # -- life ----------------------------------------------------------------------------------------------------------

    def boot(self, incarnation: int) -> None:
        if self.up or incarnation != self.incarnation:
            return
        self.up = True
        self.cell = Cell()
        self.table = r.RunTable(self.timing, self.schedule.random.random)
        self._connect(incarnation)

    def _connect(self, incarnation: int) -> None:
        if self.up and incarnation == self.incarnation:
            self.link = Link(self, next(self._sessions))

    def die(self) -> None:
        """The keeper dies: the system closes its connections, its processes hear of it and go by the cell."""
        if not self.up:
            return
        link = self.link
        self.up = self.paused = False
        self.incarnation += 1
        self._backlog.clear()
        self._tick_at = inf
        if self.schedule.random.random() < 0.8:  # else nobody tells the server
            link.hang_up()
        link.closed = True
        for run in list(self.runs.values()):
            if not run.answer:
                self._bury(run)  # its question failed

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        if not self.paused:
            return
        self.paused = False
        backlog, self._backlog = self._backlog, []
        if self.schedule.random.random() < 0.5:  # it was stopped before it looked at the time, or after it
            backlog.sort(key=lambda item: item[0].__name__ != "_overdue")
        for action, args in backlog:
            self.when_awake(action, *args)
        if self.up:
            self.deliver(r.Tick())

    def when_awake(self, action: Callable[..., None], *args: object) -> None:
        """Do what the keeper does, now or when it goes on."""
        if self.paused:
            self._backlog.append((action, args))
        else:
            action(*args)

    def session_lost(self, link: Link, reason: str) -> None:
        if link is not self.link:
            return
        if link.connected:
            self.losses += 1
            self.deliver(r.SessionLost(reason))
        delay = self.schedule.random.random() * 0.3
        self.schedule.at(self.schedule.now + delay, self.when_awake, self._connect, self.incarnation)

    def renewed(self) -> None:
        """A heartbeat was answered."""
        then, self.renewed_then = self.renewed_then, None
        if then is not None:
            self.schedule.at(self.schedule.now + self.schedule.random.random() * 0.02, then)

    # -- the table -----------------------------------------------------------------------------------------------------

    def feed(self, incarnation: int, event: r.RunEvent) -> None:
        """Hand the keeper what comes from a process."""
        if incarnation == self.incarnation and self.up:
            self.when_awake(self.deliver, event)

    def deliver(self, event: r.RunEvent) -> None:
        """Let the table take in an event, and do what it wants."""
        clock = self._last_clock = max(self.clock(), self._last_clock)
        if self.schedule.tracing and not isinstance(event, r.Tick):
            self.schedule.note("node {} <- {}", self.number, event)
        effects = self.table.handle(event, clock)
        self._write_cell(self.table.kill_deadline)
        for effect in effects:
            if self.schedule.tracing:
                self.schedule.note("node {} -> {}", self.number, effect)
            self._perform(effect)
        self._arm()

    def _arm(self) -> None:
        due = self.table.next_deadline()
        if due < inf:
            at = self.when(due) + self.schedule.random.random() * LATE
            if at < self._tick_at:
                self._tick_at = at
                self.schedule.at(at, self._tick, self.incarnation, at)

    def _tick(self, incarnation: int, at: float) -> None:
        if incarnation != self.incarnation or at != self._tick_at or not self.up:
            return
        self._tick_at = inf
        if self.paused:
            return
        clock = max(self.clock(), self._last_clock)
        if self.table.next_deadline() > clock + 1e-9:
            self._arm()
            return
        self._last_clock = clock = clock + 1e-6
        self.deliver(r.Tick())
        idle = self.table.next_deadline() <= clock
        self._idle_ticks = self._idle_ticks + 1 if idle else 0
        if self._idle_ticks > 3:
            self.schedule.referee.violated(f"node {self.number} ticks without end")

    def _perform(self, effect: r.RunEffect) -> None:
        random = self.schedule.random.random
        match effect:
            case r.Answer(run_id, result, key, token):
                run = self.runs.get(run_id)
                if run is not None:
                    self._answer(run, result, key, token)
            case r.Lost(run_id, kill_at):
                run = self.runs.get(run_id)
                if run is not None:
                    self.schedule.at(self.schedule.now + random() * 0.01, self._tell_lost, run, kill_at)
            case r.KillRun(run_id):
                run = self.runs.get(run_id)
                if run is not None:
                    self._kill(run)
            case _:
                self.schedule.referee.submitted(self.link, effect)
                self.link.submit(effect)

    def _answer(self, run: Run, result: str, key: int | None, token: int | None) -> None:
        run.answer = result
        self.schedule.referee.answered(run)
        if result != "held":
            del self.runs[run.id]
            return
        assert key is not None
        run.link = self.link
        self.schedule.referee.began(run, key, token)
        if run.call.duration < inf:
            self.schedule.at(self.schedule.now + run.call.duration, self.end, run)

    # -- processes -----------------------------------------------------------------------------------------------------

    def call(self, call: Call, limit: int) -> Run | None:
        """A process asks for a key."""
        if not self.up:
            return None
        run = Run(self, next(self._numbers), call, limit)
        self.runs[run.id] = run
        want = r.Want(
            call.base, limit, f"key {call.base}", "task", f"id {run.id[1]}", call.wait, call.fenced, call.abort
        )
        self.feed(self.incarnation, r.Wanted(run.id, want))
        return run

    def end(self, run: Run) -> None:
        """A run ends, or its process dies; the keeper hears of it a little later."""
        if run.over:
            return
        self._bury(run)
        later = self.schedule.random.random() * (0.02 if self.schedule.random.random() < 0.8 else 0.5)
        self.schedule.at(self.schedule.now + later, self.feed, run.incarnation, r.Ended(run.id))

    def _bury(self, run: Run) -> None:
        run.over = True
        self.runs.pop(run.id, None)
        self.schedule.referee.ended(run)

    def _tell_lost(self, run: Run, kill_at: float) -> None:
        if run.over or not run.call.abort:
            return
        run.told = kill_at
        random = self.schedule.random.random
        if run.call.manner == "quick":
            self.schedule.at(self.schedule.now + random() * 0.05 * self.timing.lease, self.end, run)
        elif run.call.manner == "slow":
            self.schedule.at(self.schedule.now + random() * self.timing.lease, self.end, run)
        if self.schedule.plan.guarded:
            self.schedule.at(self.when(kill_at), self._kill, run)

    def _kill(self, run: Run) -> None:
        """It is killed, and dead within the margin."""
        share = self.schedule.random.choice((0.0, 1.0, self.schedule.random.random()))
        longest = (self.timing.kill_margin - 2 * LATE) / self.machine.rate
        self.schedule.at(self.schedule.now + share * longest, self.end, run)

    def _write_cell(self, deadline: float) -> None:
        cell = self.cell
        cell.deadline = deadline
        if deadline and self.schedule.plan.guarded:
            at = self.when(deadline)
            if at < cell.looks_at:
                cell.looks_at = at
                self.schedule.at(at, self._look_at_cell, cell)

    def _look_at_cell(self, cell: Cell) -> None:
        """Every process watches the cell of the keeper that it relies on."""
        cell.looks_at = inf
        clock = self.clock()
        if clock < cell.deadline - 1e-6:
            cell.looks_at = self.when(cell.deadline)
            self.schedule.at(cell.looks_at, self._look_at_cell, cell)
            return
        for run in list(self.schedule.referee.active(self.number)):
            if run.cell is cell and run.call.abort and run.told is None:
                self.schedule.note("{} kills itself", run)
                self._kill(run)
