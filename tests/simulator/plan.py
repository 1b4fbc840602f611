"""What a schedule consists of, drawn from a profile and a seed; knows nothing of how it is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from celery_highlander.election.lease import Timing

if TYPE_CHECKING:
    from random import Random

KINDS = (
    "terminate",  # the server ends the session of a node; the node notices later, or never
    "cut",  # packets are dropped one way or both ways
    "slow",  # every message of a node takes long
    "crash",  # node and work die at once; a new node starts later
    "work-dies",  # the work fails, or its worker crashes; the keeper lives
    "pause",  # the node stands still: with a guard its work goes on, without one the whole machine stands still
    "restart",  # the server restarts: sessions and locks are gone
    "failover",  # an asynchronous replica takes over, without the last writes
    "withdraw",  # somebody asks the node to step down
    "campaign",  # somebody asks the node to take part again
    "lock-lost",  # the lock goes, the session stays (DISCARD ALL, a pooler)
    "row-locked",  # a fenced transaction holds the row: terms cannot begin
)


@dataclass(frozen=True, slots=True)
class Profile:
    """A family of schedules.

    Attributes:
        weights: how often each of `KINDS` is drawn, relative to the others; kinds that are missing never happen.
        faults: the least and the greatest number of faults.
        mixed_leases: nodes have different leases (only without lost rows: nobody could know a lost row's lease).
        fresh: how often the database starts without any term.
        guarded: how often a kill guard independent of the node watches its work.
        names: the singletons.
        losses: how often a message is lost, and its connection with it.
        stalls: how often a poll dawdles between looking at the rows and trying for the locks.
        leases: the lengths of a lease.
        clock_error: how far a clock's rate may be off; RFC 5905 slews a disciplined clock by at most 500 ppm.
        calm: one fault, short delays, and a takeover that has to come within a tight bound.
    """

    weights: tuple[tuple[str, int], ...]
    faults: tuple[int, int] = (1, 5)
    nodes: tuple[int, int] = (2, 3)
    mixed_leases: bool = False
    fresh: float = 0.1
    guarded: float = 0.5
    names: tuple[str, ...] = ("beat",)
    losses: float = 0.002
    stalls: float = 0.02
    leases: tuple[float, ...] = (4.0, 6.0)
    clock_error: float = 5e-4
    calm: bool = False


_EVERYTHING = (
    ("terminate", 6),
    ("cut", 6),
    ("slow", 3),
    ("crash", 3),
    ("work-dies", 2),
    ("pause", 5),
    ("restart", 2),
    ("failover", 3),
    ("withdraw", 3),
    ("campaign", 1),
    ("lock-lost", 2),
    ("row-locked", 1),
)
_KEEPS_ROWS = tuple(weight for weight in _EVERYTHING if weight[0] != "failover")

PROFILES: dict[str, Profile] = {
    "everything": Profile(_EVERYTHING, nodes=(2, 4)),
    "sessions": Profile((("terminate", 5), ("cut", 4), ("slow", 1), ("crash", 1), ("lock-lost", 2)), faults=(2, 6)),
    "leases": Profile(_KEEPS_ROWS, faults=(2, 6), nodes=(3, 3), mixed_leases=True),
    "failovers": Profile(
        (("failover", 6), ("terminate", 2), ("cut", 2), ("withdraw", 2), ("crash", 2), ("work-dies", 1)), fresh=0.5
    ),
    "pauses": Profile((("pause", 6), ("slow", 2), ("terminate", 4), ("cut", 2), ("withdraw", 1))),
    # A long lease makes a millisecond in a second worth something.
    "clocks": Profile((("pause", 1), ("terminate", 1)), faults=(2, 3), guarded=1.0, leases=(60.0,), clock_error=9e-4),
    "stalls": Profile((("pause", 1), ("terminate", 1)), faults=(2, 4), guarded=1.0, stalls=0.7),
    "step-downs": Profile((("withdraw", 6), ("campaign", 3), ("work-dies", 2), ("terminate", 2), ("slow", 1))),
    "several": Profile(_EVERYTHING, names=("beat", "ledger", "feed"), faults=(1, 3)),
    "calm": Profile(
        (("terminate", 2), ("cut", 3), ("crash", 4), ("work-dies", 2), ("withdraw", 2)),
        faults=(1, 1),
        fresh=0.0,
        losses=0.0,
        stalls=0.0,
        calm=True,
    ),
    "faultless": Profile(
        (("withdraw", 1),), faults=(0, 1), fresh=0.2, losses=0.0, stalls=0.0, names=("beat", "ledger")
    ),
}

_SHARES: tuple[str, ...] = (
    ("everything",) * 6 + ("sessions",) * 4 + ("leases",) * 3 + ("failovers",) * 3 + ("pauses",) * 3
)
_SHARES += ("step-downs",) * 2 + ("calm",) * 2 + ("clocks", "stalls", "several")


def profile_of(seed: int) -> str:
    """Return the profile that a seed runs when none is asked for."""
    return _SHARES[seed % len(_SHARES)]


@dataclass(frozen=True, slots=True)
class Machine:
    """One node's machine: its clock shows `offset + rate * time`."""

    rate: float
    offset: float
    timing: Timing
    guarded: bool
    priority: int


@dataclass(frozen=True, slots=True)
class Fault:
    """Something bad that happens `at` an instant of virtual time to one target: a node's number, or who leads then."""

    at: float
    kind: str
    target: int | None
    duration: float


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole schedule but for the small delays, which the same random numbers go on to draw."""

    profile: Profile
    machines: tuple[Machine, ...]
    faults: tuple[Fault, ...]
    predecessor: str  # "none", "stopped", "silent"
    clock_floor: bool
    slowest: float  # an ordinary message's greatest delay


def _timing(random: Random, lease: float, mean: float) -> Timing:
    interval = lease * random.choice((0.15, 0.2, 0.25))
    timeout = lease * random.choice((0.15, 0.25))
    margin = lease * random.choice((0.05, 0.1))
    rest = lease - interval - timeout - margin - 1e-6
    return Timing(
        lease=lease,
        heartbeat_interval=interval,
        heartbeat_timeout=timeout,
        drain_timeout=random.choice((0.1 * lease, 0.25 * lease, rest)),
        kill_margin=margin,
        poll_interval=mean,
    )


def draw(profile: Profile, random: Random) -> Plan:
    """Draw a schedule."""
    lease = random.choice(profile.leases)
    timing = _timing(random, lease, lease * random.choice((0.1, 0.2, 0.3)))
    machines = []
    for _ in range(random.randint(*profile.nodes)):
        if profile.mixed_leases:
            timing = _timing(random, random.choice((3.0, 6.0, 9.0)), timing.poll_interval)
        rate = 1.0 + random.choice((-1.0, 1.0, random.uniform(-1, 1))) * profile.clock_error
        guarded = random.random() < profile.guarded
        machines.append(Machine(rate, random.uniform(-1e5, 1e5), timing, guarded, priority=0))
    if len(profile.names) > 1 and random.random() < 0.2:
        first = machines[0]
        machines[0] = Machine(first.rate, first.offset, first.timing, first.guarded, priority=1)
    fresh = random.random() < profile.fresh
    start = random.uniform(0.5, lease)
    if fresh:
        start += lease * random.choice((0.0, 1.0))
    if profile.calm:
        start += lease
    predecessor = "none" if fresh else "stopped" if profile.calm or random.random() < 0.9 else "silent"
    return Plan(
        profile=profile,
        machines=tuple(machines),
        faults=_faults(profile, random, start, lease, len(machines)),
        predecessor=predecessor,
        clock_floor=random.random() < 0.5,
        slowest=random.choice((0.0, 0.004, 0.03)),
    )


def _faults(profile: Profile, random: Random, start: float, lease: float, nodes: int) -> tuple[Fault, ...]:
    kinds = [kind for kind, _ in profile.weights]
    weights = [weight for _, weight in profile.weights]
    faults = []
    at = start
    for kind in random.choices(kinds, weights, k=random.randint(*profile.faults)):
        target = None if profile.calm or random.random() < 0.6 else random.randrange(nodes)
        duration = random.choice((0.05, 0.3, 1.0, 1.3)) * lease * random.random()
        faults.append(Fault(at, kind, target, duration))
        at += random.choice((0.01, 0.1, 0.5, 1.1)) * lease * random.random()
    return tuple(faults)
