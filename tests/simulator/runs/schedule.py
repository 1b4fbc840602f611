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

SETTLE_STEP = 0.25
"""Virtual seconds between two looks at whether everything has ended."""


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
        self._probes: list[Run | None] = []
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
        waits = max((call.wait for call in self.plan.calls), default=0.0)
        self.at(self.now + self.random.choice((0.1, 1.0)) * self.longest, self._finish)
        self._settle(self.now + 3 * self.longest + 4.0 + waits)

    def _finish(self) -> None:
        """What runs ends, and so does what begins from now on."""
        if self._probes:
            return
        for runs in list(self.referee.acting.values()):
            for run in list(runs):
                self.at(self.now + self.random.random(), run.node.end, run)
        self.at(self.now + 0.5, self._finish)

    def _settle(self, deadline: float) -> None:
        """Every run is answered, and ends."""
        left = [run for node in self.nodes for run in node.runs.values()]
        if not left:
            self._probe()
        elif self.now > deadline:
            self.referee.violated(f"{left[0]} has no end, long after the last fault ({left[0].answer or 'no answer'})")
        else:
            self.at(self.now + SETTLE_STEP, self._settle, deadline)

    def _probe(self) -> None:
        """Each key can be had, as often as its limit says."""
        # A session that nobody hears of lasts for a lease; then a debt that nobody has seen yet has to be waited for.
        wait = 2.01 * self.longest + 4.0
        for base, limit in self.plan.limits.items():
            for slot in range(limit):
                node = self.nodes[(base // 10_000 + slot) % len(self.nodes)]
                call = Call(self.now, node.number, base, wait, inf, False, True, "quick")
                self._probes.append(node.call(call, limit))
        self._judge(self.now + wait)

    def _judge(self, deadline: float) -> None:
        for number, run in enumerate(self._probes):
            assert run is not None
            if (
                run.answer == "unavailable" and self.now < deadline
            ):  # its node has no session yet, or a table that waits
                self._probes[number] = run.node.call(run.call, run.limit)
            elif run.answer in ("busy", "unavailable") or run.over or self.now > deadline + self.longest:
                self.referee.violated(
                    f"a free key was not given to node {run.node.number}: {run.answer or 'no answer'}"
                )
        if not all(run is not None and run.answer == "held" for run in self._probes):
            self.at(self.now + SETTLE_STEP, self._judge, deadline)
            return
        for run in self._probes:
            assert run is not None
            run.node.end(run)
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
