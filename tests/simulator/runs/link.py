"""A lock session in virtual time: one statement at a time, messages that are late or lost, and either side unaware."""

from __future__ import annotations

from collections import deque
from math import inf
from typing import TYPE_CHECKING, Any

from celery_highlander.errors import LockSessionError
from celery_highlander.keeper import run_table as r
from tests.simulator.runs.database import RunSession

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulator.runs.node import Node


class Beat:
    """A heartbeat, or where no runs rely on the session any other statement that keeps it alive."""

    __slots__ = ("for_runs",)

    def __init__(self, for_runs: bool) -> None:
        self.for_runs = for_runs


class Link:
    """One session of a node, as the client's thread and the server's backend."""

    def __init__(self, node: Node, number: int) -> None:
        self.node = node
        self.schedule = node.schedule
        self.incarnation = node.incarnation
        self.holder = f"{node.number}.{node.incarnation}/{number}"
        self.session: RunSession | None = None
        self.closed = False
        self.connected = False
        self.confirmed_at = -inf  # when what renewed the lease last was sent, by the node's clock
        self._up_at = self._down_at = 0.0
        self._up_blocked = self._down_blocked = 0.0 if node.cut_until <= self.schedule.now else node.cut_until
        self._busy_until = self._spoke_at = 0.0
        self._work: deque[Any] = deque()
        self._asking = False
        self._at_up(self._accept)
        self.schedule.at(self.schedule.now + node.timing.lease / 3, self._give_up)

    @property
    def lease_end(self) -> float:
        """Until when runs may go on that relied on this session, by the node's clock."""
        return self.confirmed_at + self.node.timing.lease

    # -- the network ---------------------------------------------------------------------------------------------------

    def _latency(self) -> float:
        random = self.schedule.random.random
        if self.node.slow_until > self.schedule.now:
            return random() * self.node.timing.lease * 0.4
        return 0.0002 + random() * self.schedule.plan.slowest

    def _perhaps_lose(self) -> None:
        losses = self.schedule.plan.profile.losses
        if losses and not self.schedule.quiet and self.schedule.random.random() < losses:
            self.block(inf)

    def _at_up(self, action: Callable[..., None], *args: object) -> None:
        self._perhaps_lose()
        self._up_at = max(self._up_at, self.schedule.now + self._latency(), self._up_blocked)
        if self._up_at < inf:
            self.schedule.at(self._up_at, action, *args)

    def _at_down(self, action: Callable[..., None], *args: object, later: float = 0.0) -> None:
        self._perhaps_lose()
        self._down_at = max(self._down_at, self.schedule.now + self._latency(), self._down_blocked)
        if self._down_at + later < inf:
            self.schedule.at(self._down_at + later, self._hear, action, args)

    def _hear(self, action: Callable[..., None], args: tuple[object, ...]) -> None:
        """Something arrives at the client, which may stand still, or be gone."""
        if not self.closed and self.node.incarnation == self.incarnation:
            self.node.when_awake(action, *args)

    def block(self, until: float) -> None:
        """From now on nothing arrives before `until`, in one direction or in both."""
        direction = self.schedule.random.choice(("up", "down", "both"))
        self.schedule.note("{}: {} blocked", self.holder, direction)
        if direction != "down":
            self._up_blocked = max(self._up_blocked, until)
        if direction != "up":
            self._down_blocked = max(self._down_blocked, until)

    # -- its beginning and end -----------------------------------------------------------------------------------------

    def _accept(self) -> None:
        if not self.schedule.server_up:
            self._at_down(self.lose, "refused")
        elif not self.closed:
            database = self.schedule.database
            self.session = RunSession(database, self.holder, self.node.timing.lease)
            self._spoke_at = self.schedule.now
            self._watch_idle()
            self._at_down(self._open, str(database.instance))

    def _open(self, instance: str) -> None:
        if not self.closed and not self.connected:
            self.connected = True
            self.node.deliver(r.SessionOpen(self.holder, instance))
            self._beat()

    def _give_up(self) -> None:
        if not self.connected and self.node.incarnation == self.incarnation:
            self.node.when_awake(self.lose, "no connection")

    def lose(self, reason: str) -> None:
        """The client closes its end: the server learns of it later, or never, and does what was sent before."""
        if self.closed or self.node.incarnation != self.incarnation:
            return
        self.hang_up()
        self.node.session_lost(self, reason)

    def hang_up(self) -> None:
        """Close the client's end without a word to the node."""
        if not self.closed:
            self.closed = True
            self._at_up(self._end)

    def _end(self) -> None:
        """The backend notices that its client is gone, once it has done its statement."""
        if self.schedule.now < self._busy_until:
            self.schedule.at(self._busy_until + 0.001, self._end)
        elif self.session is not None:
            self.session.end()

    def terminate(self, notice: float) -> None:
        """The server ends the session; the client notices after `notice` seconds, or with its next statement."""
        if self.session is not None:
            self.session.end()
        self._at_down(self.lose, "terminated", later=notice)

    def _watch_idle(self) -> None:
        if self.session is None or not self.session.alive:
            return
        end = max(self._spoke_at, self._busy_until) + self.node.timing.lease
        if self.schedule.now >= end - 1e-6:
            self.schedule.note("{}: idle for too long", self.holder)
            self.terminate(0.0)
        else:
            self.schedule.at(end, self._watch_idle)

    # -- heartbeats ----------------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        node = self.node
        if self.closed or node.incarnation != self.incarnation:
            return
        sent_at = node.clock()
        beat = Beat(node.table.needs_heartbeats)
        self.submit(beat)
        timing = node.timing
        self.schedule.at(node.when(sent_at + timing.heartbeat_timeout), node.when_awake, self._overdue, beat)

    def _overdue(self, beat: Beat) -> None:
        if not self.closed and self._under_way is beat:
            self.lose("a heartbeat was not answered")

    # -- statements ----------------------------------------------------------------------------------------------------

    _under_way: Beat | None = None

    def submit(self, statement: Any) -> None:
        """Have a statement done after those that were submitted before."""
        if isinstance(statement, Beat):
            self._under_way = statement
        if not self.closed:
            self._work.append(statement)
            self._next()

    def _next(self) -> None:
        if self._work and not self._asking:
            self._asking = True
            statement = self._work.popleft()
            self._send(statement, self.node.clock(), isinstance(statement, r.Take) and bool(statement.free))

    def _send(self, statement: Any, sent_at: float, freeing: bool) -> None:
        self._at_up(self._arrive, statement, sent_at, freeing)

    def _arrive(self, statement: Any, sent_at: float, freeing: bool) -> None:
        schedule = self.schedule
        if isinstance(statement, r.Take) and not schedule.quiet and schedule.random.random() < schedule.stalls:
            self._busy_until = schedule.now + schedule.random.random() * 0.15 * self.node.timing.lease
            snapshot = dict(schedule.database.rows)
            schedule.at(self._busy_until, self._execute, statement, sent_at, freeing, snapshot)
        else:
            self._execute(statement, sent_at, freeing, None)

    def _execute(self, statement: Any, sent_at: float, freeing: bool, snapshot: Any) -> None:
        session = self.session
        if session is None or not session.alive:
            self._at_down(self.lose, "connection reset")
            return
        self._spoke_at = self.schedule.now
        try:
            answer = self._do(session, statement, sent_at, freeing, snapshot)
        except LockSessionError as error:
            self._at_down(self.lose, str(error))
            return
        self.schedule.referee.check_locks(self.schedule.database)
        self._at_down(self._answered, statement, sent_at, freeing, answer)

    def _do(self, session: RunSession, statement: Any, sent_at: float, freeing: bool, snapshot: Any) -> Any:
        match statement:
            case Beat():
                if statement.for_runs:
                    session.beat()
                    return r.Beaten(sent_at)
            case r.Take(free, tries, excluded, paid):
                if freeing:
                    session.free(free)
                    return None
                self.schedule.referee.check_dead(self.schedule.database, paid)
                outcomes = session.take(tries, excluded, paid, snapshot) if tries else {}
                debts = [one.holder for one in outcomes.values() if one.key is not None and not one.taken]
                self.schedule.referee.check_dead(self.schedule.database, debts)
                return r.Taken(outcomes)
            case r.Register():
                return r.Registered(sent_at, session.register())
            case r.Look():
                return r.Looked(session.runners())
            case r.Settle():
                self.schedule.referee.settled(self.schedule.now)
                session.settle()
            case r.MarkRuns(ended):
                session.mark(ended)
        return None

    def _answered(self, statement: Any, sent_at: float, freeing: bool, answer: r.RunEvent | None) -> None:
        if self.closed:
            return
        if freeing:
            self._send(statement, sent_at, False)
            return
        if isinstance(statement, Beat):
            self._under_way = None
            node = self.node
            at = node.when(sent_at + node.timing.heartbeat_interval)
            self.schedule.at(at, node.when_awake, self._beat)
        if isinstance(answer, (r.Beaten, r.Registered)):
            self.confirmed_at = max(self.confirmed_at, sent_at)
        if isinstance(answer, r.Beaten):
            self.node.renewed()
        if answer is not None:
            self.node.deliver(answer)
        self._asking = False
        self._next()
