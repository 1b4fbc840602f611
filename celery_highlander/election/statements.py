"""What a node is told, and what it asks for: the events and effects of `Node`; decides nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from celery_highlander.election import contest as c

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery_highlander.election.orders import Order
    from celery_highlander.election.placement import Member


# -- events, beside those of the contests ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connected:
    """The session that `OpenSession` asked for is open, checked and set up."""


@dataclass(frozen=True, slots=True)
class ConnectFailed:
    """It could not be opened."""

    reason: str


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The session broke."""

    reason: str


@dataclass(frozen=True, slots=True)
class PollRow:
    """What a poll said of one singleton; `token` is None where it never had a term."""

    name: str
    granted: bool
    token: int | None
    heartbeats: int


@dataclass(frozen=True, slots=True)
class Polled:
    """The answer to `Poll`.

    `stopped` has the tokens, by name, of the awaited predecessors that left their mark; `members` and `orders` are None
    where they were not asked for.
    """

    rows: tuple[PollRow, ...]
    stopped: Mapping[str, int]
    members: tuple[Member, ...] | None = None
    orders: tuple[Order, ...] | None = None


@dataclass(frozen=True, slots=True)
class TermsBegun:
    """The answer to `Begin`: name to outcome."""

    outcomes: Mapping[str, c.Begun | c.BeginFailed]


@dataclass(frozen=True, slots=True)
class HeartbeatAnswered:
    """The answer to `Heartbeat` if, and only if, every row was renewed on the right backend of a primary."""

    sent_at: float


@dataclass(frozen=True, slots=True)
class LockReleased:
    """The answer to `ReleaseLock`."""

    name: str


@dataclass(frozen=True, slots=True)
class MarksLeft:
    """The answer to `LeaveMarks`."""

    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class Notified:
    """Somebody released something, or left a mark."""


@dataclass(frozen=True, slots=True)
class To:
    """An event for the contest of one singleton, from the worker's side."""

    name: str
    event: c.Campaign | c.Withdraw | c.WorkStopped


NodeEvent = (
    Connected
    | ConnectFailed
    | Disconnected
    | Polled
    | TermsBegun
    | HeartbeatAnswered
    | LockReleased
    | MarksLeft
    | Notified
    | To
    | c.Tick
)


# -- effects -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mark:
    """A stopped mark: the work of term `token` of `name` is dead, and why the term ended."""

    name: str
    token: int
    reason: str


@dataclass(frozen=True, slots=True)
class OpenSession:
    """Open session `number`; answer with `Connected` or `ConnectFailed`."""

    number: int


@dataclass(frozen=True, slots=True)
class CloseSession:
    """Close the session, at once and whatever it is doing; no answer."""

    reason: str


@dataclass(frozen=True, slots=True)
class Poll:
    """Look at `names`, try for the locks of those in `trying`, look for the marks of `awaited` (name to token).

    With `members` look also who takes part, and what operators have asked for.
    """

    names: tuple[str, ...]
    trying: frozenset[str]
    awaited: Mapping[str, int]
    members: bool


@dataclass(frozen=True, slots=True)
class Unlock:
    """Give back locks that were granted beyond this node's share; no answer."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Begin:
    """Record a term for each of `names`."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Renew the rows of `terms` (name to token); those in `acting` owe their successor only their own lease.

    With `runs` renew the row of the session, too, that singleton runs rely on.
    """

    terms: Mapping[str, int]
    acting: frozenset[str]
    runs: bool = False


@dataclass(frozen=True, slots=True)
class ReleaseLock:
    """Leave `mark` (None: none), then unlock, then notify."""

    name: str
    mark: Mark | None


@dataclass(frozen=True, slots=True)
class Show:
    """Show the others whether this node takes part; no answer."""

    taking_part: bool


@dataclass(frozen=True, slots=True)
class LeaveMarks:
    """Leave the marks of terms that ended while there was no session, then notify."""

    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class Start:
    """The work of `name` may act."""

    name: str
    token: int
    lease_deadline: float


@dataclass(frozen=True, slots=True)
class Stop:
    """The work of `name` has to stop; it is killed at `kill_deadline` (None: never while the session lives)."""

    name: str
    token: int
    reason: str
    kill_deadline: float | None


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill the work of `name`."""

    name: str
    token: int
    reason: str


NodeEffect = (
    OpenSession
    | CloseSession
    | Poll
    | Unlock
    | Begin
    | Heartbeat
    | ReleaseLock
    | Show
    | LeaveMarks
    | Start
    | Stop
    | Kill
)
