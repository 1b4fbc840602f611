"""The values of one singleton's contest on one node: phases, events, effects and its state; decides nothing.

What follows from what is in `protocol`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery_highlander.election.lease import Timing


class Phase(Enum):
    """Where a node stands in the contest for one singleton."""

    STANDBY = "standby"  # no lock; wants it unless it rests
    BEGINNING = "beginning"  # has the lock, the term's row is being written
    WAITING = "waiting"  # the term is on record; the predecessor's lease runs out
    LEADING = "leading"  # the work may act
    STOPPING = "stopping"  # the work was told to stop; the lock session lives
    LOST = "lost"  # the work was told to stop; the term is over at the server
    RELEASING = "releasing"  # the work is dead; stopped mark and unlock are under way


HOLDING = frozenset({Phase.WAITING, Phase.LEADING, Phase.STOPPING})
"""The phases whose term is renewed by heartbeats."""

AT_WORK = frozenset({Phase.LEADING, Phase.STOPPING, Phase.LOST})
"""The phases in which work may be running."""


# -- events ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Campaign:
    """The node wants to lead this singleton."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The node gives up leading, and does not try again for `rest` seconds (for good: infinity).

    Patient means that running work may take its time: nothing is killed while the session lives.
    """

    reason: str
    rest: float = inf
    patient: bool = False


@dataclass(frozen=True, slots=True)
class Sighted:
    """A poll showed the row of the current term: `token` and count of `heartbeats`."""

    token: int
    heartbeats: int


@dataclass(frozen=True, slots=True)
class Granted:
    """The server granted the advisory lock to this node's session."""


@dataclass(frozen=True, slots=True)
class Predecessor:
    """The term row as it was when ours replaced it.

    Attributes:
        owed: seconds since its last heartbeat that a successor has to leave it.
        stopped: it left its stopped mark.
        same_instance: it was written on the server instance that we are connected to.
    """

    token: int
    heartbeats: int
    owed: float
    stopped: bool
    same_instance: bool


@dataclass(frozen=True, slots=True)
class Begun:
    """Our term is on record under `token`; the statement was sent at `sent_at` and committed since."""

    token: int
    sent_at: float
    predecessor: Predecessor | None


@dataclass(frozen=True, slots=True)
class BeginFailed:
    """The term could not be recorded, though the session lives: a fenced transaction holds the row, for instance."""

    rest: float


@dataclass(frozen=True, slots=True)
class Renewed:
    """A heartbeat that was sent at `sent_at` renewed our term's row."""

    sent_at: float


@dataclass(frozen=True, slots=True)
class PredecessorStopped:
    """The term `token` left its stopped mark."""

    token: int


@dataclass(frozen=True, slots=True)
class SessionLost:
    """The lock session is gone, or cannot be trusted any more, and with it the lock."""

    reason: str


@dataclass(frozen=True, slots=True)
class WorkStopped:
    """All work of the term is dead: by itself (then `reason` says why), or because it was told to stop."""

    reason: str = ""
    rest: float = 0.0


@dataclass(frozen=True, slots=True)
class Released:
    """The lock is given back."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Campaign
    | Withdraw
    | Sighted
    | Granted
    | Begun
    | BeginFailed
    | Renewed
    | PredecessorStopped
    | SessionLost
    | WorkStopped
    | Released
    | Tick
)


# -- effects -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BeginTerm:
    """Write our term into the row; answer with `Begun` or `BeginFailed`."""


@dataclass(frozen=True, slots=True)
class StartWork:
    """The work may act until `lease_deadline`, which heartbeats move on."""

    token: int
    lease_deadline: float


@dataclass(frozen=True, slots=True)
class StopWork:
    """The work has to stop, and is killed at `kill_deadline` (None: whenever it ends). Answer with `WorkStopped`."""

    token: int
    reason: str
    kill_deadline: float | None


@dataclass(frozen=True, slots=True)
class KillWork:
    """Kill what is left of the work. Answer with `WorkStopped` when it is dead, not when it is told."""

    token: int
    reason: str


@dataclass(frozen=True, slots=True)
class Release:
    """Leave the stopped mark for `mark` (None: leave none), then unlock, then notify. Answer with `Released`."""

    mark: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class OweMark:
    """The session is gone: leave the stopped mark for `token` as soon as there is another one."""

    token: int
    reason: str


@dataclass(frozen=True, slots=True)
class AbandonSession:
    """Close the lock session: the lease ran out under it."""

    reason: str


Effect = BeginTerm | StartWork | StopWork | KillWork | Release | OweMark | AbandonSession


# -- state -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Term:
    """One unbroken spell of holding the lock.

    Attributes:
        lease_deadline: until when this node may act.
        owed_until: until when the predecessor may act.
        predecessor: the token whose stopped mark ends the wait; None where no mark can.
        cleared: this term has acted, or owed nothing; only then may it leave its stopped mark.
    """

    token: int
    lease_deadline: float
    owed_until: float
    predecessor: int | None
    cleared: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Sighting:
    """The last heartbeat that this node saw of somebody's term, and when it saw it first."""

    token: int
    heartbeats: int
    first_seen_at: float


@dataclass(frozen=True, slots=True)
class Contest:
    """The state of one singleton on one node."""

    phase: Phase = Phase.STANDBY
    resting_until: float = inf
    term: Term | None = None
    sighting: Sighting | None = None
    kill_deadline: float | None = None

    def wants_lock(self, now: float) -> bool:
        """Whether the next poll should try for the lock."""
        return self.phase is Phase.STANDBY and now >= self.resting_until

    def may_act(self, now: float) -> bool:
        """Whether the work may act at this instant; in doubt, no."""
        return self.phase is Phase.LEADING and self.term is not None and now < self.term.lease_deadline

    def next_deadline(self, now: float, timing: Timing) -> float:
        """When the next `Tick` is due, in seconds of the boot-time clock; infinity if never."""
        term = self.term
        if term is None:
            return inf
        if self.phase is Phase.WAITING:
            if term.owed_until <= now and now >= timing.act_deadline(term.lease_deadline):
                return inf  # the wait is over, the lease is stale: the next heartbeat's answer decides
            return term.owed_until
        if self.phase is Phase.LEADING:
            return timing.act_deadline(term.lease_deadline)
        if self.phase in (Phase.STOPPING, Phase.LOST):
            act_deadline = timing.act_deadline(term.lease_deadline) if self.phase is Phase.STOPPING else inf
            return min(act_deadline, inf if self.kill_deadline is None else self.kill_deadline)
        return inf
