"""One machine of the cluster: a node, the driver of its lock session, its work, and perhaps a kill guard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_highlander.election import node as n
from celery_highlander.election import protocol as p
from tests.simulator.leases import Leases
from tests.simulator.server import Statement

if TYPE_CHECKING:
    from tests.simulator.cluster import Cluster
    from tests.simulator.network import Link
    from tests.simulator.plan import Machine as MachinePlan


LATE = 0.005
"""Seconds by which a tick may be late."""


class Work:
    """The guarded work of one term, from `Start` until it is really dead."""

    __slots__ = ("manner", "name", "stopping", "token")

    def __init__(self, name: str, token: int, manner: str) -> None:
        self.name = name
        self.token = token
        self.manner = manner  # what it does when it is told to stop: "quick", "slow", "ignores"
        self.stopping = False


class Machine:
    """Feeds a `Node` what happens to it, does what it wants, and has a clock of its own."""

    def __init__(self, cluster: Cluster, number: int, plan: MachinePlan) -> None:
        self.cluster = cluster
        self.number = number
        self.plan = plan
        self.timing = plan.timing
        self.works: dict[str, Work] = {}
        self.link: Link | None = None
        self.incarnation = 0
        self.up = False
        self.paused = False
        self.cut_until = 0.0
        self.slow_until = 0.0
        self.patient = False
        self._backlog: list[tuple[n.NodeEvent, Link | None, n.NodeEffect | None, float]] = []
        self.leases = Leases(plan.timing.lease)
        self._lease_cell: float | None = None
        self._guard_at = float("inf")
        self._tick_at = float("inf")
        self._last_clock = float("-inf")
        self._idle_ticks = 0
        self.boot(self.incarnation)

    # -- time ----------------------------------------------------------------------------------------------------------

    def clock(self) -> float:
        return self.plan.offset + self.plan.rate * self.cluster.now

    def when(self, clock: float) -> float:
        """Return the virtual time at which this machine's clock shows `clock`."""
        return max(self.cluster.now, (clock - self.plan.offset) / self.plan.rate)

    # -- life ----------------------------------------------------------------------------------------------------------

    def boot(self, incarnation: int) -> None:
        if self.up or incarnation != self.incarnation:
            return
        self.up = True
        names = self.cluster.plan.profile.names
        self.node = n.Node(names, self.timing, self.cluster.random.random, self.identity, self.plan.priority)
        self.cluster.note("node {}: up as {}", self.number, self.identity)
        for name in names:
            self.feed(n.To(name, p.Campaign()))

    @property
    def identity(self) -> str:
        return f"{self.number}.{self.incarnation}"

    def crash(self) -> None:
        """Everything on this machine is dead, the keeper too."""
        self.up = self.paused = False
        self.incarnation += 1
        for work in list(self.works.values()):
            self._bury(work)
        self._backlog.clear()
        self._lease_cell = None
        self._tick_at = float("inf")

    def pause(self) -> None:
        self.paused = True
        if not self.plan.guarded:  # the whole machine stands still
            for work in self.works.values():
                self.cluster.referee.suspended(work.name, self.number)

    def resume(self) -> None:
        if not self.paused:
            return
        self.paused = False
        self.cluster.note("node {}: goes on", self.number)
        if not self.plan.guarded:
            cell = self._lease_cell
            expired = cell is None or self.clock() >= cell - self.timing.kill_margin
            for work in list(self.works.values()):
                if expired:  # its own deadline check comes before anything else that it does
                    self.die(work, "its deadline passed while the machine stood still")
                else:
                    self.cluster.referee.started(work.name, self.number, work.token)
        backlog, self._backlog = self._backlog, []
        for event, link, statement, sent_at in backlog:
            self.feed(event, link, statement, sent_at)
        self._tick_at = self.cluster.now
        self.cluster.at(self.cluster.now, self.tick, self.incarnation, self.cluster.now, self.clock())

    # -- the node ------------------------------------------------------------------------------------------------------

    def feed(
        self,
        event: n.NodeEvent,
        link: Link | None = None,
        statement: n.NodeEffect | None = None,
        sent_at: float = 0.0,
    ) -> None:
        """Let the node take in an event; `link` is the connection that it came over."""
        if self.paused:
            self._backlog.append((event, link, statement, sent_at))
            return
        clock = self.clock()
        if link is not None:
            if link.machine_incarnation != self.incarnation or link.number != self.node.session:
                return  # an answer of an earlier session
            if isinstance(event, (n.Connected, n.ConnectFailed, n.Disconnected)):
                if link.closed or link.reported is type(event):
                    return
                link.reported = type(event)
                if not isinstance(event, n.Connected):
                    self._hang_up(link, str(event))
            self.leases.confirm(event, statement)
        self._deliver(event, clock)
        late = link is not None and statement is not None and clock >= sent_at + self.timing.heartbeat_timeout
        if late and link is not None and self.node.connected and self.node.session == link.number:
            self.cluster.referee.suspected(f"node {self.number} believes an answer that came too late")

    def tell(self, incarnation: int, event: n.To) -> None:
        """An event from the worker's side."""
        if incarnation == self.incarnation:
            self.feed(event)

    def tick(self, incarnation: int, at: float, due: float) -> None:
        if incarnation != self.incarnation or at != self._tick_at:
            return  # of an earlier start, or brought forward since
        self._tick_at = float("inf")
        if not self.up or self.paused:
            return
        clock = max(self.clock(), due)
        if self.node.next_deadline(clock) <= clock:
            self._deliver(p.Tick(), clock)
            if self.node.next_deadline(clock) > clock:
                self._idle_ticks = 0
            else:
                self._idle_ticks += 1
                if self._idle_ticks > 1:
                    self.cluster.referee.violated(f"node {self.number} ticks without end")
        else:
            self._arm(clock)

    def _deliver(self, event: n.NodeEvent, clock: float) -> None:
        clock = self._last_clock = max(clock, self._last_clock)
        if self.cluster.referee.tracing and not isinstance(event, p.Tick):
            self.cluster.note("node {} <- {}", self.number, event)
        before = self.node.contests.copy() if self.cluster.referee.tracing else {}
        effects = self.node.handle(event, clock)
        for name, contest in before.items():
            if self.node.contests[name].phase is not contest.phase:
                phases = (contest.phase.value, self.node.contests[name].phase.value)
                self.cluster.note("node {}: {} {} -> {}", self.number, name, *phases)
        for effect in effects:
            self._perform(effect)
        cell = self.node.lease_deadline
        if cell != self._lease_cell:
            self._lease_cell = cell
            self._arm_guard()
        self._check(clock)
        self._arm(clock)

    def _arm(self, clock: float) -> None:
        due = self.node.next_deadline(clock)
        if due == float("inf"):
            return
        at = self.when(due) + self.cluster.random.random() * LATE * 0.9
        if at < self._tick_at:
            self._tick_at = at
            self.cluster.at(at, self.tick, self.incarnation, at, max(due, clock))

    def _check(self, clock: float) -> None:
        """What holds of every leading contest after every event, whatever the cluster does."""
        for name, contest in self.node.contests.items():
            term = contest.term
            if contest.phase is p.Phase.LEADING and term is not None:
                if term.lease_deadline > self.leases.end_of(name, term.token) + 1e-6:
                    self.cluster.referee.suspected(f"node {self.number} believes in a lease that nobody confirmed")
                if clock >= self.timing.act_deadline(term.lease_deadline):
                    self.cluster.referee.suspected(f"node {self.number} leads on when it has to begin to stop")

    # -- effects -------------------------------------------------------------------------------------------------------

    def _perform(self, effect: n.NodeEffect) -> None:
        if self.cluster.referee.tracing:
            self.cluster.note("node {} -> {}", self.number, effect)
        if isinstance(effect, Statement):
            assert self.link is not None
            self.cluster.network.send(self.link, effect, self.clock())
            return
        match effect:
            case n.OpenSession(number):
                self.link = self.cluster.network.connect(self, number)
            case n.CloseSession(reason):
                assert self.link is not None
                self._hang_up(self.link, reason)
            case n.Start(name, token):
                self.cluster.referee.elected(name, self.number, token)
                draw = self.cluster.random.random()
                self.works[name] = Work(name, token, "quick" if draw < 0.4 else "slow" if draw < 0.6 else "ignores")
            case n.Stop(name, token):
                self._stop(self.works.get(name), token)
            case n.Kill(name, token):
                work = self.works.get(name)
                if work is not None and work.token == token:
                    self._kill(work)

    def _hang_up(self, link: Link, reason: str) -> None:
        profile = self.cluster.plan.profile
        if not profile.losses and not profile.calm:
            self.cluster.referee.violated(f"node {self.number} lost its session without any fault: {reason}")
        self.cluster.network.close(link)

    # -- work ----------------------------------------------------------------------------------------------------------

    def _stop(self, work: Work | None, token: int) -> None:
        if work is None or work.token != token or work.stopping:
            return
        work.stopping = True
        random = self.cluster.random.random
        if work.manner == "quick":
            self.cluster.at(self.cluster.now + random() * 0.05 * self.timing.lease, self.die, work, "")
        elif work.manner == "slow":
            self.cluster.at(self.cluster.now + random() * 1.2 * self.timing.drain_timeout, self.die, work, "")

    def finish(self) -> None:
        """Work that was patiently asked to stop ends at last."""
        for work in list(self.works.values()):
            if work.stopping:
                self.cluster.at(self.cluster.now + self.cluster.random.random(), self.die, work, "")

    def _kill(self, work: Work) -> None:
        share = self.cluster.random.choice((0.0, 1.0, self.cluster.random.random()))
        longest = self.timing.kill_margin - LATE  # together with a late tick just in time
        self.cluster.at(self.cluster.now + share * longest / self.plan.rate, self.die, work, "")

    def die(self, work: Work, reason: str) -> None:
        """The work is really dead now; the node hears of it a little later."""
        if self.works.get(work.name) is not work:
            return
        self._bury(work)
        random = self.cluster.random.random
        later = random() * (0.02 if random() < 0.8 else 0.1 * self.timing.lease)
        event = n.To(work.name, p.WorkStopped(reason, rest=random() if reason else 0.0))
        self.cluster.at(self.cluster.now + later, self.tell, self.incarnation, event)

    def _bury(self, work: Work) -> None:
        del self.works[work.name]
        self.cluster.referee.died(work.name, self.number, work.token, self.clock(), self.true_deadline(work))

    def true_deadline(self, work: Work) -> float:
        return self.leases.end_of(work.name, work.token)

    # -- the guard -----------------------------------------------------------------------------------------------------

    def _arm_guard(self) -> None:
        if not self.plan.guarded or self._lease_cell is None:
            return
        at = self.when(self._lease_cell - self.timing.kill_margin)
        if at < self._guard_at:
            self._guard_at = at
            self.cluster.at(at, self._guard)

    def _guard(self) -> None:
        self._guard_at = float("inf")
        cell = self._lease_cell
        if cell is None:
            return
        if self.clock() < cell - self.timing.kill_margin - 1e-6:
            self._arm_guard()
            return
        for work in self.works.values():
            self.cluster.note("node {}: the guard kills the work of {}", self.number, work.name)
            self._kill(work)
