"""The singleton runs of one node: who waits for a key, who holds one, whose session was lost; pure, it does no I/O.

What is guarded against, and how:

- Two runs on one node: session locks stack, so this table settles it. A key that a run of ours holds, or held when its
  session was lost and has not ended yet, is never tried for.
- A run that goes on although its session is dead: its row is left, and is a debt. Whoever gets the lock of such a key
  gives it back until the row is gone (the run has ended), or until the lease has passed since this node first saw the
  last heartbeat of that session. The heartbeats are read again after the lock was got: only then they are the last.
- A run of ours that goes on: it may for as long as the last answered heartbeat allows, counted from when that was sent.
  A heartbeat writes a row that is logged, so an isolated primary does not answer it.
- A table that lost its rows (a crash, a promoted replica): then its settled mark is missing, too, and nobody gets
  anything before the longest lease has passed since this node connected.

Feed it events through `handle`, and do what it returns, in order; call `handle(Tick())` at `next_deadline()`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import TYPE_CHECKING

from celery_highlander.election.lease import wait_for
from celery_highlander.store.runs import Registration, Tried, Try

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from celery_highlander.election.lease import Timing

RunId = tuple[int, int]
"""The number of a client's connection, and the number that the client gave the run."""

POLL_INTERVAL = 0.1
"""Seconds between two tries for a key that another node holds; up to half as much again, at random."""

LOOK_INTERVAL = 5.0
"""Seconds between two looks at the other nodes' heartbeats, so that a debt that turns up late is paid already."""

SIGHTING_KEPT = 3600.0
"""Seconds for which a session is remembered whose debts are paid. Should one turn up later, its lease is waited for."""

PATIENCE = 1.0
"""Seconds that a run waits for the database before it is told that there is none."""

IDLE_DURATION = 30.0
"""Seconds without a run after which a session stops its heartbeats for them."""

FREE_DELAY = 0.002
"""Seconds for which keys that nobody waits for here are kept, so that they are given back together."""

MOST_AT_ONCE = 200
"""Tries in one statement, at most."""


@dataclass(frozen=True, slots=True)
class Want:
    """What a run wants.

    Attributes:
        base: the key of the first of `limit` slots.
        name: the key's text.
        wait: seconds that it would wait for a run that holds the key.
        fenced: it wants a token.
        abort: it has to end when its session is lost.
    """

    base: int
    limit: int
    name: str
    task: str
    task_id: str
    wait: float
    fenced: bool
    abort: bool


# -- events ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """A run wants a key."""

    run: RunId
    want: Want


@dataclass(frozen=True, slots=True)
class Ended:
    """A run has ended, or its process is dead, or it wants nothing any more."""

    run: RunId


@dataclass(frozen=True, slots=True)
class SessionOpen:
    """There is a lock session; `holder` is what it is called, `instance` is the server that it leads to."""

    holder: str
    instance: str


@dataclass(frozen=True, slots=True)
class SessionLost:
    """There is none any more."""

    reason: str


@dataclass(frozen=True, slots=True)
class Registered:
    """The answer to `Register`, which was sent at `sent_at`."""

    sent_at: float
    found: Registration


@dataclass(frozen=True, slots=True)
class Refused:
    """The answer to `Register` where the role may not use the tables."""

    reason: str


@dataclass(frozen=True, slots=True)
class Beaten:
    """A heartbeat was answered that was sent at `sent_at`."""

    sent_at: float


@dataclass(frozen=True, slots=True)
class Taken:
    """The answer to `Take`, by the number of the try."""

    outcomes: Mapping[int, Tried]


@dataclass(frozen=True, slots=True)
class Looked:
    """The answer to `Look`: heartbeats and lease of each holder."""

    runners: Mapping[str, tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


RunEvent = Wanted | Ended | SessionOpen | SessionLost | Registered | Refused | Beaten | Taken | Looked | Tick


# -- effects -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Register:
    """Record the session; answer with `Registered` or `Refused`."""


@dataclass(frozen=True, slots=True)
class Settle:
    """Leave the settled mark; no answer."""


@dataclass(frozen=True, slots=True)
class Take:
    """Free some keys, then try for others; answer with `Taken` if there are any to try for."""

    free: tuple[int, ...]
    tries: tuple[Try, ...]
    excluded: frozenset[int]
    paid: frozenset[str]


@dataclass(frozen=True, slots=True)
class Look:
    """Read everybody's heartbeats; answer with `Looked`."""


@dataclass(frozen=True, slots=True)
class MarkRuns:
    """Say that the runs of lost sessions have ended, but for those that still hold the given keys; no answer."""

    ended: Mapping[str, frozenset[int]]


@dataclass(frozen=True, slots=True)
class Answer:
    """Tell a run what came of it: `held`, `busy` or `unavailable`."""

    run: RunId
    result: str
    key: int | None = None
    token: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Lost:
    """Tell a run that it has lost its key, and is killed at `kill_at`."""

    run: RunId
    kill_at: float
    reason: str


@dataclass(frozen=True, slots=True)
class KillRun:
    """Kill the process of a run."""

    run: RunId


RunEffect = Register | Settle | Take | Look | MarkRuns | Answer | Lost | KillRun


class Phase(Enum):
    """Where a run stands."""

    WAITING = "waiting"
    ASKED = "asked"
    HELD = "held"
    LOST = "lost"


@dataclass(slots=True)
class _Run:
    id: RunId
    want: Want
    came_at: float
    phase: Phase = Phase.WAITING
    tried: bool = False
    owed: frozenset[int] = frozenset()  # slots that turned out to be debts, while it looks for another one
    busy: str = ""  # who holds the key, as far as we know
    key: int = 0
    holder: str = ""
    kill_at: float = inf
    killed: bool = False
    gone: bool = False  # while the answer to its try is under way


@dataclass(slots=True)
class _Queue:
    """Who waits for one base; the first one is tried for."""

    runs: deque[_Run] = field(default_factory=deque)
    try_at: float = 0.0
    asked: bool = False


@dataclass(slots=True)
class _Sighting:
    heartbeats: int | None
    lease: float
    seen_at: float
    is_owed: bool = False  # its session is dead
    is_final: bool = False  # and was so when the heartbeats were read: there will be no later one


class RunTable:
    """The runs of one node.

    Args:
        timing: the durations of the node's lease.
        random: returns a number from 0 up to 1.
    """

    def __init__(self, timing: Timing, random: Callable[[], float]) -> None:
        self._timing = timing
        self._random = random
        self._runs: dict[RunId, _Run] = {}
        self._running: dict[RunId, _Run] = {}  # those of them that hold a key, or have lost it
        self._queues: dict[int, _Queue] = {}
        self._on_base: dict[int, int] = {}  # how many runs hold, or have lost, a slot of it here
        self._asked: dict[int, _Run] = {}
        self._numbers = 0
        self._to_free: list[int] = []
        self._free_at = inf
        self._answer_due = False
        self._holder = self._instance = ""
        self._registering = self._is_registered = False
        self._opened_at = self._closed_at = -inf
        self._blocked_until = inf
        self._lease_deadline = -inf
        self._idle_since = inf
        self._look_at = inf
        self._sightings: dict[str, _Sighting] = {}
        self._lost_holders: set[str] = set()

    # -- what the outside may ask --------------------------------------------------------------------------------------

    @property
    def needs_heartbeats(self) -> bool:
        """Whether the session's heartbeats have to renew its row."""
        return self._is_registered

    @property
    def kill_deadline(self) -> float:
        """When runs that have to end with their session have to be dead; 0 where there are none."""
        if any(run.phase is Phase.HELD and run.want.abort for run in self._running.values()):
            return self._timing.kill_deadline(self._lease_deadline)
        return max((run.kill_at for run in self._running.values() if run.kill_at < inf), default=0.0)

    @property
    def idle(self) -> bool:
        """Whether there is nothing that the session is needed for."""
        return not (self._runs or self._to_free or self._answer_due or self._lost_holders)

    @property
    def kill_at(self) -> float:
        """When the next process has to be killed."""
        return min((run.kill_at for run in self._running.values() if not run.killed), default=inf)

    def next_deadline(self) -> float:
        """When the next `Tick` is due."""
        due = self.kill_at
        if self._queues:
            due = min(due, *(self._queue_due(queue) for queue in self._queues.values()))
        if self._to_free and not self._answer_due:
            due = min(due, self._free_at)
        if self._is_registered:
            due = min(due, self._look_at, self._idle_since + IDLE_DURATION if self._is_open else self._blocked_until)
        return due

    def _queue_due(self, queue: _Queue) -> float:
        if not self._is_open:
            return min(map(self._patient_until, queue.runs), default=inf)
        expires = min((run.came_at + run.want.wait for run in queue.runs if run.tried), default=inf)
        return expires if queue.asked or self._answer_due else min(queue.try_at, expires)

    def _patient_until(self, run: _Run) -> float:
        return max(run.came_at, self._closed_at) + PATIENCE

    @property
    def _is_open(self) -> bool:
        return self._is_registered and self._blocked_until == -inf

    # -- the fold ------------------------------------------------------------------------------------------------------

    def handle(self, event: RunEvent, now: float) -> list[RunEffect]:
        """Take in `event` at `now`; return what has to be done, in this order."""
        effects: list[RunEffect] = []
        touched: list[int] | None = None
        match event:
            case Wanted(run_id, want):
                self._want(run_id, want, now)
                touched = [want.base]
            case Ended(run_id):
                touched = self._end(run_id, now, effects)
            case SessionOpen(holder, instance):
                self._session_open(holder, instance, now, effects)
            case SessionLost(reason):
                self._session_lost(reason, now, effects)
            case Registered(sent_at, found):
                self._registered(sent_at, found, now, effects)
            case Refused(reason):
                self._registering = False
                for run in [run for run in self._runs.values() if run.phase is Phase.WAITING]:
                    self._give_up(run, Answer(run.id, "refused", reason=reason), effects)
            case Beaten(sent_at):
                self._lease_deadline = max(self._lease_deadline, sent_at + self._timing.lease)
            case Taken(outcomes):
                self._taken(outcomes, now, effects)
            case Looked(runners):
                self._looked(runners, now)
            case Tick():
                self._tick(now, effects)
        self._serve(now, effects, touched)
        return effects

    def _want(self, run_id: RunId, want: Want, now: float) -> None:
        self._runs[run_id] = run = _Run(run_id, want, now)
        queue = self._queues.setdefault(want.base, _Queue())
        if queue.runs and queue.runs[0].tried:
            run.tried, run.busy = True, queue.runs[0].busy  # it would wait behind that one
        queue.runs.append(run)

    def _end(self, run_id: RunId, now: float, effects: list[RunEffect]) -> list[int]:
        run = self._runs.get(run_id)
        if run is None:
            return []
        base = run.want.base
        if run.phase is Phase.ASKED:
            run.gone = True
            return []
        del self._runs[run_id]
        if run.phase is Phase.WAITING:
            self._unqueue(run)
            return [base]
        del self._running[run_id]
        self._leave_base(base)
        if run.phase is Phase.HELD:
            self._give_back(run.key, now)
        elif self._is_registered:
            self._mark(effects)
        if base in self._queues:
            self._queues[base].try_at = now
        return [base]

    def _give_back(self, key: int, now: float) -> None:
        if not self._to_free:
            self._free_at = now + FREE_DELAY
        self._to_free.append(key)

    def _unqueue(self, run: _Run) -> None:
        queue = self._queues[run.want.base]
        queue.runs.remove(run)
        if not queue.runs and not queue.asked:
            del self._queues[run.want.base]

    def _leave_base(self, base: int) -> None:
        self._on_base[base] -= 1
        if not self._on_base[base]:
            del self._on_base[base]

    def _tick(self, now: float, effects: list[RunEffect]) -> None:
        for run in self._running.values():
            if run.kill_at <= now and not run.killed:
                run.killed = True
                effects.append(KillRun(run.id))
        if self._is_registered and self._blocked_until != -inf and now >= self._blocked_until:
            self._blocked_until = -inf
            effects.append(Settle())
        if self._is_registered and now >= self._look_at:
            self._look(effects)
        if self._is_open and not self._runs and now >= self._idle_since + IDLE_DURATION:
            self._is_registered = False

    # -- the session ---------------------------------------------------------------------------------------------------

    def _session_open(self, holder: str, instance: str, now: float, effects: list[RunEffect]) -> None:
        if instance != self._instance:
            self._sightings.clear()  # of heartbeats that this server may never have seen
        self._holder, self._instance = holder, instance
        self._blocked_until = inf
        self._opened_at = now
        if self._lost_holders:
            self._register(effects)

    def _register(self, effects: list[RunEffect]) -> None:
        if self._holder and not self._registering and not self._is_registered:
            self._registering = True
            effects.append(Register())

    def _registered(self, sent_at: float, found: Registration, now: float, effects: list[RunEffect]) -> None:
        self._registering = False
        self._is_registered = True
        self._lease_deadline = max(self._lease_deadline, sent_at + self._timing.lease)
        if found.settled:
            self._blocked_until = -inf
        elif self._blocked_until == inf:
            self._blocked_until = self._opened_at + wait_for(found.longest_lease)
        self._idle_since = now
        self._mark(effects)
        self._look(effects)

    def _session_lost(self, reason: str, now: float, effects: list[RunEffect]) -> None:
        if self._registering or self._is_registered:
            self._lost_holders.add(self._holder)  # it may have rows
        self._registering = self._is_registered = self._answer_due = False
        self._blocked_until = inf
        self._closed_at = now
        self._to_free.clear()
        self._look_at = inf
        kill_at = self._timing.kill_deadline(self._lease_deadline)
        for run in self._asked.values():
            if run.gone:
                del self._runs[run.id]
            else:
                run.phase = Phase.WAITING
                self._queues[run.want.base].runs.appendleft(run)
        self._asked.clear()
        for base, queue in list(self._queues.items()):
            queue.asked = False
            queue.try_at = now
            if not queue.runs:
                del self._queues[base]
        for run in self._running.values():
            if run.phase is Phase.HELD:
                run.phase = Phase.LOST
                run.holder = self._holder
                if run.want.abort:
                    run.kill_at = kill_at
                    effects.append(Lost(run.id, kill_at, reason))
        self._holder = ""

    def _mark(self, effects: list[RunEffect]) -> None:
        if not self._lost_holders:
            return
        lost = [run for run in self._running.values() if run.phase is Phase.LOST]
        ended = {holder: frozenset(run.key for run in lost if run.holder == holder) for holder in self._lost_holders}
        effects.append(MarkRuns(ended))
        self._lost_holders = {holder for holder, running in ended.items() if running}

    # -- the others ----------------------------------------------------------------------------------------------------

    def _look(self, effects: list[RunEffect]) -> None:
        self._look_at = inf
        effects.append(Look())

    def _looked(self, runners: Mapping[str, tuple[int, float]], now: float) -> None:
        self._look_at = now + LOOK_INTERVAL
        for holder in set(self._sightings) - set(runners):
            seen = self._sightings[holder]
            if not seen.is_owed or now > seen.seen_at + seen.lease + SIGHTING_KEPT:
                del self._sightings[holder]
        for holder, (heartbeats, lease) in runners.items():
            known = self._sightings.setdefault(holder, _Sighting(heartbeats, lease, now))
            if known.heartbeats != heartbeats:
                known.heartbeats, known.seen_at = heartbeats, now
        for sighting in self._sightings.values():
            sighting.is_final = sighting.is_owed

    def _owed(self, holder: str, lease: float, now: float, effects: list[RunEffect]) -> None:
        """A key was free that `holder` has not given back: its session is dead."""
        known = self._sightings.setdefault(holder, _Sighting(None, lease, now))
        if not known.is_owed:
            known.is_owed = True
            known.lease = max(known.lease, lease)
            self._look(effects)

    def _paid(self, now: float) -> frozenset[str]:
        return frozenset(
            holder
            for holder, seen in self._sightings.items()
            if seen.is_final and now >= seen.seen_at + wait_for(seen.lease)
        )

    # -- keys ----------------------------------------------------------------------------------------------------------

    def _serve(self, now: float, effects: list[RunEffect], touched: list[int] | None) -> None:
        if self._runs:
            self._idle_since = now
        bases = list(self._queues) if touched is None else [base for base in touched if base in self._queues]
        if not self._is_open:
            if bases:
                self._register(effects)
                reason = (
                    "there is no lock session" if not self._holder else "runs from before a restart may still go on"
                )
                for base in bases:
                    for run in [run for run in self._queues[base].runs if now >= self._patient_until(run)]:
                        self._give_up(run, Answer(run.id, "unavailable", reason=reason), effects)
            return
        if self._answer_due and touched is not None:
            return  # all are looked at when the answer is there
        tries: list[Try] = []
        for base in bases:
            self._expire(base, now, effects)
            queue = self._queues.get(base)
            if queue is None or queue.asked or now < queue.try_at or self._answer_due or len(tries) >= MOST_AT_ONCE:
                continue
            run = queue.runs[0]
            if self._on_base.get(base, 0) >= run.want.limit:
                queue.try_at = inf  # until one of them ends
                ours = next((one.want.task_id for one in self._running.values() if one.want.base == base), "")
                self._found_busy(queue, ours, now, effects)
                continue
            queue.asked = True
            queue.runs.popleft()
            run.phase = Phase.ASKED
            self._numbers += 1
            self._asked[self._numbers] = run
            start = int(self._random() * run.want.limit)
            want = run.want
            tries.append(
                Try(self._numbers, base, want.limit, start, want.name, want.task, want.task_id, fenced=want.fenced)
            )
        if tries and not self._answer_due:
            self._answer_due = True
            wanted = {key for one in tries for key in range(one.base, one.base + one.limit)}
            excluded = frozenset(run.key for run in self._running.values())
            excluded = excluded.union(*(self._asked[one.number].owed for one in tries))
            first = tuple(key for key in self._to_free if key in wanted)
            effects.append(Take(first, tuple(tries), excluded & wanted, self._paid(now)))
            self._to_free = [key for key in self._to_free if key not in wanted]
        if self._to_free and now >= self._free_at and touched is None:
            effects.append(Take(tuple(self._to_free), (), frozenset(), frozenset()))
            self._to_free = []

    def _expire(self, base: int, now: float, effects: list[RunEffect]) -> None:
        for run in [run for run in self._queues[base].runs if run.tried and now >= run.came_at + run.want.wait]:
            self._give_up(run, Answer(run.id, "busy", reason=run.busy), effects)

    def _give_up(self, run: _Run, answer: Answer, effects: list[RunEffect]) -> None:
        del self._runs[run.id]
        self._unqueue(run)
        effects.append(answer)

    def _found_busy(self, queue: _Queue, by: str, now: float, effects: list[RunEffect]) -> None:
        """Whoever waits behind the first one has its answer, too: they all want the same key."""
        for run in list(queue.runs):
            run.tried = True
            run.busy = by
            if now >= run.came_at + run.want.wait:
                self._give_up(run, Answer(run.id, "busy", reason=by), effects)

    def _taken(self, outcomes: Mapping[int, Tried], now: float, effects: list[RunEffect]) -> None:
        self._answer_due = False
        for number, tried in outcomes.items():
            run = self._asked.pop(number)
            base = run.want.base
            queue = self._queues[base]
            queue.asked = False
            if tried.taken and tried.key is not None:
                self._got(run, tried.key, tried.token, now, effects)
                queue.try_at = now
            else:
                if tried.key is not None and tried.holder:
                    self._owed(tried.holder, tried.lease, now, effects)
                if run.gone:
                    del self._runs[run.id]
                else:
                    run.phase = Phase.WAITING
                    queue.runs.appendleft(run)
                if tried.key is not None and run.want.limit > 1:
                    run.owed |= {tried.key}
                    queue.try_at = now  # another slot may be free
                else:
                    run.owed = frozenset()
                    queue.try_at = now + POLL_INTERVAL * (1.0 + self._random() / 2)
                    self._found_busy(queue, tried.task_id or "", now, effects)
            if base in self._queues and not queue.runs:
                del self._queues[base]

    def _got(self, run: _Run, key: int, token: int | None, now: float, effects: list[RunEffect]) -> None:
        if run.gone or now >= self._timing.kill_deadline(self._lease_deadline):
            self._give_back(key, now)
            if run.gone:
                del self._runs[run.id]
            else:  # too late to begin anything under this session: its next heartbeat decides
                run.phase = Phase.WAITING
                self._queues[run.want.base].runs.appendleft(run)
            return
        run.phase = Phase.HELD
        run.key = key
        self._running[run.id] = run
        self._on_base[run.want.base] = self._on_base.get(run.want.base, 0) + 1
        effects.append(Answer(run.id, "held", key, token))
