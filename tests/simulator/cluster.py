"""A schedule: virtual time, the faults, and when it has been good for long enough."""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any

from celery_highlander.election import node as n
from celery_highlander.election import protocol as p
from tests.simulator.machine import Machine
from tests.simulator.network import Link, Network
from tests.simulator.server import TOKENS_PER_TIMELINE, LockServer, Row

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from tests.simulator.plan import Fault, Plan
    from tests.simulator.referee import Referee

SETTLE_STEP = 0.25
"""Virtual seconds between two looks at whether the cluster has settled."""


class Cluster:
    """Machines, one server and the network between them."""

    def __init__(self, plan: Plan, random: Random, referee: Referee) -> None:
        self.plan = plan
        self.random = random
        self.referee = referee
        self.now = 0.0
        self.quiet = False
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._ties = count()
        self._busy_until = 0.0
        self._settled = False
        self._quiet_clocks: list[float] = []
        self.server = LockServer(referee, plan.clock_floor)
        self.network = Network(self)
        if plan.predecessor != "none":
            for name in plan.profile.names:
                token = TOKENS_PER_TIMELINE + 7
                self.server.rows[name] = Row(token, 3, plan.machines[0].timing.lease, self.server.instance)
                if plan.predecessor == "stopped":
                    self.server.marks.add((name, token))
        self.machines = [Machine(self, number, machine) for number, machine in enumerate(plan.machines)]
        for fault in plan.faults:
            self.at(fault.at, self._strike, fault)
        last = max((fault.at for fault in plan.faults), default=1.0)
        self.at(last + 0.01, self._quieten)

    def at(self, when: float, action: Callable[..., None], *args: object) -> None:
        """Let `action` happen at `when`."""
        heappush(self._queue, (when, next(self._ties), action, args))

    def note(self, text: str, *args: object) -> None:
        if self.referee.tracing:
            self.referee.note(text.format(*args))

    def run(self) -> None:
        """Run until the cluster has settled after the last fault.

        Raises:
            InvariantError: an invariant does not hold.
            ProtocolError: an event met a contest that has no move for it.
        """
        queue = self._queue
        referee = self.referee
        while not self._settled:
            when, _, action, args = heappop(queue)
            if when > self.now:
                self.now = referee.now = when
            action(*args)

    # -- the end -------------------------------------------------------------------------------------------------------

    def _quieten(self) -> None:
        if self.now < self._busy_until:
            self.at(self._busy_until, self._quieten)
            return
        self.quiet = True
        self.note("the faults are over")
        for machine in self.machines:
            machine.slow_until = 0.0
            machine.finish()
            machine.boot(machine.incarnation)
            for name in self.plan.profile.names:
                machine.feed(n.To(name, p.Campaign()))
        self._quiet_clocks = [machine.clock() for machine in self.machines]
        longest = max(machine.timing.lease for machine in self.machines)
        timing = self.machines[0].timing
        # A black-holed session ends after its lease, the lock comes with a poll, then a whole lease is waited for; and
        # a node needs a time-out and its longest pause (or a connect time-out) before it is connected at all.
        bound = 2 * longest * 1.005 + longest * 0.6 + 3.2 + 4 * 1.5 * timing.poll_interval + 1.5
        self._settle(self.now + bound * (1 if len(self.plan.profile.names) == 1 else 2))

    def _settle(self, deadline: float) -> None:
        self.check_leases()
        if all(self._led(name) for name in self.plan.profile.names):
            self._settled = True
        elif self.now > deadline:
            phases = {m.number: {k: c.phase.value for k, c in m.node.contests.items()} for m in self.machines}
            self.referee.violated(f"nobody leads, long after the last fault: {phases}")
        else:
            self.at(self.now + SETTLE_STEP, self._settle, deadline)

    def _led(self, name: str) -> bool:
        """Whether some leader's lease was renewed after the last fault."""
        for machine, quiet_clock in zip(self.machines, self._quiet_clocks, strict=True):
            contest = machine.node.contests[name]
            if contest.phase is p.Phase.LEADING and contest.term is not None:
                return contest.term.lease_deadline >= quiet_clock + machine.timing.lease
        return False

    def check_leases(self) -> None:
        """No work is alive after its lease."""
        for machine in self.machines:
            for work in machine.works.values():
                if machine.clock() > machine.true_deadline(work) and not (machine.paused and not machine.plan.guarded):
                    self.referee.violated(f"work of {work.name} on node {machine.number} is past its lease")

    # -- faults --------------------------------------------------------------------------------------------------------

    def _target(self, fault: Fault) -> Machine:
        """The machine that a fault names, or the one that holds a lock."""
        if fault.target is None:
            for machine in self.machines:
                if machine.works:
                    return machine
            holders = set(self.server.locks.values())
            for session, link in self.network.links.items():
                if session in holders:
                    return link.machine
        return self.machines[fault.target or 0]

    def _strike(self, fault: Fault) -> None:
        machine = self._target(fault)
        self.note("FAULT {} of node {} for {:.3f} s", fault.kind, machine.number, fault.duration)
        strike = getattr(self, "_strike_" + fault.kind.replace("-", "_"))
        strike(machine, fault.duration)
        if self.plan.profile.calm:
            self._expect_takeover(machine, fault.kind)

    def _busy(self, duration: float) -> float:
        end = self.now + duration
        self._busy_until = max(self._busy_until, end)
        return end

    def _strike_terminate(self, machine: Machine, duration: float) -> None:
        if machine.link is not None:
            notice = 0.0 if self.plan.profile.calm else self.random.choice((0.0, duration, duration, inf))
            self.network.terminate(machine.link, notice)

    def _strike_cut(self, machine: Machine, duration: float) -> None:
        if self.plan.profile.calm:
            duration = 3 * machine.timing.lease
        end = self._busy(duration)
        if machine.link is not None:
            self.network.block(machine.link, self.random.choice((end, inf)))
        if self.random.random() < 0.5:
            machine.cut_until = end

    def _strike_slow(self, machine: Machine, duration: float) -> None:
        machine.slow_until = self._busy(duration)

    def _strike_crash(self, machine: Machine, duration: float) -> None:
        if not machine.up:
            return
        if self.plan.profile.calm:
            duration = 3 * machine.timing.lease  # a node that knows nobody would take the lock and wait from then on
        link = machine.link
        machine.crash()
        if link is not None and not link.closed:
            link.closed = True
            if self.random.random() < 0.5:  # else the machine died, and nobody resets the connection
                self.network.hear_of_end(link)
        self.at(self._busy(duration), machine.boot, machine.incarnation)

    def _strike_work_dies(self, machine: Machine, _duration: float) -> None:
        if not machine.paused:
            for work in list(machine.works.values()):
                machine.die(work, "failed")

    def _strike_pause(self, machine: Machine, duration: float) -> None:
        if machine.up and not machine.paused:
            machine.pause()
            self.at(self._busy(duration * 1.5), machine.resume)

    def _strike_restart(self, _machine: Machine, duration: float) -> None:
        self._server_down(duration * 0.3)

    def _strike_failover(self, _machine: Machine, duration: float) -> None:
        lost = self.server.lose_writes(self.random.choice((0, 1, 2, 3, 5, 10)))
        self.note("server: a replica takes over; {} writes are lost", lost)
        self._server_down(duration * 0.3)

    def _server_down(self, duration: float) -> None:
        sessions = [link for link in self.network.links.values() if link.session is not None and link.session.alive]
        self.server.go_down()
        for link in sessions:
            self.network.terminate(link, self.random.choice((0.0, duration, inf)))
        self.server.instance += 1
        self.at(self._busy(duration * self.random.random()), self._server_up)

    def _server_up(self) -> None:
        self.server.up = True

    def _strike_withdraw(self, machine: Machine, duration: float) -> None:
        rest = self.random.choice((0.0, duration, inf)) if len(self.plan.faults) > 1 else 2.0 * machine.timing.lease
        withdraw = p.Withdraw("asked", rest, patient=not self.plan.profile.calm and self.random.random() < 0.3)
        if not self.plan.profile.losses and not self.plan.profile.calm:
            self._busy(rest)
        if machine.up:
            for name in self.plan.profile.names:
                machine.feed(n.To(name, withdraw))

    def _strike_campaign(self, machine: Machine, _duration: float) -> None:
        if machine.up:
            for name in self.plan.profile.names:
                machine.feed(n.To(name, p.Campaign()))

    def _strike_lock_lost(self, machine: Machine, _duration: float) -> None:
        for name, session in list(self.server.locks.items()):
            link: Link | None = self.network.links.get(session)
            if link is not None and link.machine is machine:
                del self.server.locks[name]

    def _strike_row_locked(self, _machine: Machine, duration: float) -> None:
        self.server.locked_rows.update(self.plan.profile.names)
        self.at(self._busy(duration), self.server.locked_rows.clear)

    # -- how fast a takeover has to be ---------------------------------------------------------------------------------

    def _expect_takeover(self, machine: Machine, kind: str) -> None:
        timing = machine.timing
        lapse = timing.lease * 1.005 + 1.5 * timing.poll_interval
        told = timing.drain_timeout + timing.kill_margin + 0.1 * timing.lease
        bound = {
            "work-dies": 0.1 * timing.lease,
            "withdraw": told,
            "terminate": told + 1.5 * timing.poll_interval,
            "cut": lapse + timing.heartbeat_interval + timing.heartbeat_timeout,  # it may still be heard for so long
            "crash": lapse,
        }[kind]
        bound += 0.2 + 8 * self.plan.slowest
        self._busy(bound + 0.01)
        self.at(self.now + bound, self._took_over, len(self.referee.elections), kind, bound)

    def _took_over(self, elections: int, kind: str, bound: float) -> None:
        if len(self.referee.elections) == elections:
            self.referee.violated(f"nobody took over within {bound:.3f} s of the fault: {kind}")
