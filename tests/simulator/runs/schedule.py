"""A schedule of singleton runs: virtual time, the calls, the faults, and how it has to end."""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any

from tests.simulator.runs.database import Database
from tests.simulator.runs.node import Node, Run
from tests.simulator.runs.plan import Call

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from tests.simulator.runs.plan import Fault, Plan
    from tests.simulator.runs.referee import RunReferee


class Schedule:
    """Nodes and one server."""

    def __init__(self, plan: Plan, random: Random, referee: RunReferee) -> None:
        self.plan = plan
        self.random = random
        self.referee = referee
        self.tracing = referee.tracing
        self.now = 0.0
        self.quiet = False
        self.stood_still = 0.0
        self.stalls = plan.profile.stalls
        self.server_up = True
        self.database = Database()
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._ties = count()
        self._busy_until = 0.0
        self._over = False
        self._probes: list[tuple[Node, Run | None]] = []
        self.longest = max(machine.timing.lease for machine in plan.machines)
        self.nodes = [Node(self, number, machine) for number, machine in enumerate(plan.machines)]
        for fault in plan.faults:
            self.at(fault.at, self._strike, fault)
        for call in plan.calls:
            self.at(call.at, self._call, call)
        self.at(plan.end, self._quieten)

    def at(self, when: float, action: Callable[..., None], *args: object) -> None:
        """Let `action` happen at `when`."""
        heappush(self._queue, (when, next(self._ties), action, args))

    def note(self, text: str, *args: object) -> None:
        if self.tracing:
            self.referee.note(text.format(*args))

    def run(self) -> None:
        """Run until everything has ended after the last fault.

        Raises:
            InvariantError: an invariant does not hold.
        """
        queue = self._queue
        while not self._over:
            when, _, action, args = heappop(queue)
            if when > self.now:
                self.now = self.referee.now = when
            action(*args)

    # -- calls ---------------------------------------------------------------------------------------------------------

    def _call(self, call: Call) -> None:
        run = self.nodes[call.node].call(call, self.plan.limits[call.base])
        if run is not None and self.random.random() < 0.1:  # its process dies, or wants nothing any more
            self.at(self.now + self.random.random() * self.longest, self.nodes[call.node].end, run)

    # -- the end -------------------------------------------------------------------------------------------------------

    def _quieten(self) -> None:
        if self.now < self._busy_until:
            self.at(self._busy_until, self._quieten)
            return
        self.quiet = True
        self.note("the faults are over")
        for node in self.nodes:
            node.slow_until = node.cut_until = 0.0
            node.renewed_then = None
            node.resume()
            node.boot(node.incarnation)
        patience = 3 * self.longest + 4.0
        waits = max((call.wait for call in self.plan.calls), default=0.0)
        self.at(self.now + self.random.choice((0.1, 1.0)) * self.longest, self._finish)
        self.at(self.now + patience + waits, self._probe)

    def _finish(self) -> None:
        """What runs ends, and so does what begins from now on."""
        if self._probes:
            return
        for runs in list(self.referee.acting.values()):
            for run in list(runs):
                self.at(self.now + self.random.random(), run.node.end, run)
        self.at(self.now + 0.5, self._finish)

    def _probe(self) -> None:
        """Every run was answered, and each key can be had, as often as its limit says."""
        for node in self.nodes:
            for run in node.runs.values():
                if not run.answer:
                    self.referee.violated(f"{run} was never answered")
        wait = self.longest * 1.01 + 3.0  # a debt that nobody has seen yet has to be waited for
        for base, limit in self.plan.limits.items():
            for slot in range(limit):
                node = self.nodes[(base // 10_000 + slot) % len(self.nodes)]
                call = Call(self.now, 0, base, wait, 1000.0, False, True, "quick")
                self._probes.append((node, node.call(call, limit)))
        self.at(self.now + wait + 3.0, self._judge)

    def _judge(self) -> None:
        for node, run in self._probes:
            if run is None or run.answer != "held" or run.over:
                self.referee.violated(f"a free key was not given to node {node.number}: {run and run.answer!r}")
            else:
                node.end(run)
        self.at(self.now + 2.0, self._close)

    def _close(self) -> None:
        self.referee.check_end(self.database)
        self._over = True

    # -- faults --------------------------------------------------------------------------------------------------------

    def _strike(self, fault: Fault) -> None:
        acting = [run.node for runs in self.referee.acting.values() for run in runs]
        node = acting[0] if fault.target is None and acting else self.nodes[fault.target or 0]
        self.note("FAULT {} of node {} for {:.3f} s", fault.kind, node.number, fault.duration)
        getattr(self, "_strike_" + fault.kind.replace("-", "_"))(node, fault.duration)

    def _busy(self, duration: float) -> float:
        end = self.now + duration
        self._busy_until = max(self._busy_until, end)
        return end

    def _strike_terminate(self, node: Node, duration: float) -> None:
        node.link.terminate(self.random.choice((0.0, duration, inf)))

    def _strike_cut(self, node: Node, duration: float) -> None:
        end = self._busy(duration)
        node.link.block(self.random.choice((end, inf)))
        if self.random.random() < 0.5:
            node.cut_until = end

    def _strike_slow(self, node: Node, duration: float) -> None:
        node.slow_until = self._busy(duration)

    def _strike_pause(self, node: Node, duration: float) -> None:
        if node.up and not node.paused:
            node.pause()
            self.stood_still += 1.5 * duration
            self.at(self._busy(duration * 1.5), node.resume)

    def _strike_keeper_dies(self, node: Node, duration: float) -> None:
        node.die()
        self.at(self._busy(duration * self.random.random()), node.boot, node.incarnation)

    def _strike_dies_renewed(self, node: Node, duration: float) -> None:
        node.renewed_then = lambda: self._strike_keeper_dies(node, duration)
        self._busy(node.timing.heartbeat_interval)

    def _strike_crash(self, node: Node, duration: float) -> None:
        for run in list(self.referee.active(node.number)):
            node.end(run)
        self._strike_keeper_dies(node, duration)

    def _strike_fenced(self, _node: Node, duration: float) -> None:
        keys = {base + slot for base, limit in self.plan.limits.items() for slot in range(limit)}
        self.database.fenced |= keys
        self.at(self._busy(duration), self.database.fenced.clear)

    def _strike_restart(self, _node: Node, duration: float) -> None:
        self._server_down(duration, self.database.restart)

    def _strike_server_crash(self, _node: Node, duration: float) -> None:
        self._server_down(duration, self.database.crash)

    def _strike_promote(self, _node: Node, duration: float) -> None:
        lost = self.random.choice((0, 1, 3, 10))
        self._server_down(duration, lambda: self.database.promote(lost))

    def _server_down(self, duration: float, go_down: Callable[[], None]) -> None:
        go_down()
        for node in self.nodes:
            node.link.terminate(self.random.choice((0.0, duration, inf)))
        self.server_up = False
        self.at(self._busy(duration * 0.3 * self.random.random()), self._server_comes_up)

    def _server_comes_up(self) -> None:
        self.server_up = True
