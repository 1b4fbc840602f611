"""What a schedule of singleton runs consists of, drawn from a profile and a seed; knows nothing of how it is run."""

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
    "pause",  # the keeper stands still, its processes go on
    "keeper-dies",  # its processes go on, and a new keeper knows nothing of them
    "dies-renewed",  # as `keeper-dies`, just after a heartbeat
    "crash",  # keeper and processes die
    "restart",  # the server shuts down and starts again
    "server-crash",  # the server crashes: what is not logged is gone
    "promote",  # a replica takes over, without what is not logged, and without the last changes
    "fenced",  # a transaction of a run's application holds back the next token
)


@dataclass(frozen=True, slots=True)
class Profile:
    """A family of schedules.

    Attributes:
        weights: how often each of `KINDS` is drawn, relative to the others; kinds that are missing never happen.
        faults: the least and the greatest number of faults.
        mixed_leases: nodes have different leases (only without lost rows: nobody could know a lost row's lease).
        guarded: how often a process kills itself at the deadline, also where its keeper does not tell it to.
        limits: how many runs may hold a key.
        losses: how often a message is lost, and its connection with it.
        stalls: how often a statement dawdles between looking at the rows and trying for the locks.
        leases: the lengths of a lease.
        clock_error: how far a clock's rate may be off.
        long_runs: how many of the runs last until they are stopped.
        patient: how many of the calls wait for longer than a lease, whatever comes.
        ends: how long after the last fault calls still come, in leases.
        early: in which share of that time all calls come.
    """

    weights: tuple[tuple[str, int], ...]
    faults: tuple[int, int] = (1, 5)
    nodes: tuple[int, int] = (2, 3)
    mixed_leases: bool = False
    guarded: float = 1.0
    limits: tuple[int, ...] = (1, 1, 1, 2, 3)
    losses: float = 0.002
    stalls: float = 0.05
    leases: tuple[float, ...] = (2.0, 4.0, 6.0)
    clock_error: float = 5e-4
    long_runs: float = 0.4
    patient: float = 0.0
    ends: tuple[float, ...] = (0.1, 1.0, 1.5)
    early: float = 1.0


_EVERYTHING = (
    ("terminate", 6),
    ("cut", 5),
    ("slow", 2),
    ("pause", 4),
    ("keeper-dies", 3),
    ("crash", 1),
    ("restart", 2),
    ("server-crash", 3),
    ("promote", 2),
    ("fenced", 1),
)

PROFILES: dict[str, Profile] = {
    "everything": Profile(_EVERYTHING, nodes=(2, 4)),
    "sessions": Profile((("terminate", 5), ("cut", 4), ("slow", 1)), faults=(2, 6), guarded=0.5),
    "leases": Profile(
        (("terminate", 5), ("cut", 4), ("server-crash", 2), ("keeper-dies", 2)), nodes=(3, 3), mixed_leases=True
    ),
    "servers": Profile((("server-crash", 4), ("promote", 3), ("restart", 3), ("terminate", 2)), guarded=0.5),
    "pauses": Profile((("pause", 6), ("slow", 1), ("terminate", 4), ("cut", 2), ("keeper-dies", 2))),
    # A long lease makes a millisecond in a second worth something.
    "clocks": Profile(
        (("dies-renewed", 8), ("terminate", 1), ("server-crash", 1)),
        faults=(1, 1),
        nodes=(2, 2),
        leases=(200.0,),
        clock_error=9e-4,
        limits=(1,),
        long_runs=0.8,
        patient=0.7,
        ends=(1.5,),
        early=0.05,
    ),
    "stalls": Profile((("terminate", 3), ("keeper-dies", 1)), faults=(2, 4), stalls=0.5, long_runs=0.2),
    "slots": Profile((("terminate", 4), ("cut", 2), ("pause", 1), ("keeper-dies", 1)), limits=(2, 3)),
    "faultless": Profile((("fenced", 1),), faults=(0, 1), losses=0.0, stalls=0.0, long_runs=0.1),
}

_SHARES: tuple[str, ...] = (
    ("everything",) * 6 + ("sessions",) * 4 + ("leases",) * 3 + ("servers",) * 3 + ("pauses",) * 3
)
_SHARES += ("slots",) * 2 + ("stalls",) * 2 + ("clocks", "faultless")


def profile_of(seed: int) -> str:
    """Return the profile that a seed runs when none is asked for."""
    return _SHARES[seed % len(_SHARES)]


@dataclass(frozen=True, slots=True)
class Machine:
    """One node's machine: its clock shows `offset + rate * time`."""

    rate: float
    offset: float
    timing: Timing


@dataclass(frozen=True, slots=True)
class Fault:
    """Something bad that happens `at` an instant of virtual time to a node, or to one that has runs."""

    at: float
    kind: str
    target: int | None
    duration: float


@dataclass(frozen=True, slots=True)
class Call:
    """A run that a process of a node asks for; it lasts for `duration` unless it is stopped."""

    at: float
    node: int
    base: int
    wait: float
    duration: float
    fenced: bool
    abort: bool
    manner: str  # what it does when it is told of a loss: "quick", "slow", "ignores"


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole schedule but for the small delays, which the same random numbers go on to draw."""

    profile: Profile
    machines: tuple[Machine, ...]
    limits: dict[int, int]
    faults: tuple[Fault, ...]
    calls: tuple[Call, ...]
    end: float
    guarded: bool
    slowest: float


def draw(profile: Profile, random: Random) -> Plan:
    """Draw a plan."""
    lease = random.choice(profile.leases)
    machines = []
    for _ in range(random.randint(*profile.nodes)):
        own = lease * random.choice((0.5, 1.0, 2.0)) if profile.mixed_leases else lease
        rate = 1.0 + random.uniform(-1, 1) * profile.clock_error
        machines.append(Machine(rate, random.uniform(0, 1e5), _timing(random, own)))
    limits = {10_000 * (number + 1): random.choice(profile.limits) for number in range(random.choice((1, 1, 2)))}
    faults = []
    at = random.uniform(0.3, lease)
    kinds = [kind for kind, _ in profile.weights]
    weights = [weight for _, weight in profile.weights]
    for kind in random.choices(kinds, weights, k=random.randint(*profile.faults)):
        target = None if random.random() < 0.7 else random.randrange(len(machines))
        faults.append(Fault(at, kind, target, random.choice((0.05, 0.3, 1.0, 1.3)) * lease * random.random()))
        at += random.choice((0.01, 0.1, 0.5, 1.1)) * lease * random.random()
    end = at + lease * random.choice(profile.ends)
    return Plan(
        profile=profile,
        machines=tuple(machines),
        limits=limits,
        faults=tuple(faults),
        calls=_calls(profile, random, len(machines), sorted(limits), end, lease),
        end=end,
        guarded=random.random() < profile.guarded,
        slowest=random.choice((0.0, 0.004, 0.03)),
    )


def _timing(random: Random, lease: float) -> Timing:
    interval = lease * random.choice((0.15, 0.2, 0.25))
    timeout = lease * random.choice((0.15, 0.25))
    return Timing(lease, interval, timeout, lease * random.choice((0.1, 0.3)), lease * random.choice((0.05, 0.1)))


def _calls(
    profile: Profile, random: Random, nodes: int, bases: list[int], end: float, lease: float
) -> tuple[Call, ...]:
    calls = []
    for _ in range(random.randint(4, 12)):
        lasts = lease * 100 if random.random() < profile.long_runs else lease * random.random() ** 3
        calls.append(
            Call(
                at=profile.early * end * random.random(),
                node=random.randrange(nodes),
                base=random.choice(bases),
                wait=3 * lease if random.random() < profile.patient else random.choice((0.0, 0.5, lease, 3 * lease)),
                duration=lasts,
                fenced=random.random() < 0.2,
                abort=random.random() < 0.9,
                manner=random.choice(("quick", "slow", "ignores", "ignores")),
            )
        )
    return tuple(calls)
