"""Connections in virtual time: messages are late, arrive in order or never, and either side may not know."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from celery_highlander.election import node as n
from celery_highlander.election.placement import Member
from tests.simulator.server import Row, Session, Statement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.simulator.cluster import Cluster
    from tests.simulator.machine import Machine


class Link:
    """One connection as its client sees it."""

    __slots__ = (
        "busy_until",
        "closed",
        "down_at",
        "down_blocked",
        "machine",
        "machine_incarnation",
        "number",
        "reported",
        "session",
        "up_at",
        "up_blocked",
    )

    def __init__(self, machine: Machine, number: int, blocked: float) -> None:
        self.machine = machine
        self.machine_incarnation = machine.incarnation
        self.number = number
        self.session: Session | None = None
        self.closed = False
        self.reported: type | None = None
        self.busy_until = 0.0  # the server runs one statement after the other
        self.up_at = self.down_at = 0.0  # when the last message arrives: the next one does not overtake it
        self.up_blocked = self.down_blocked = blocked  # nothing arrives before; infinity: never again


class Network:
    """Carries what nodes say to the server, and back."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.links: dict[Session, Link] = {}
        self.losses = cluster.plan.profile.losses
        self.stalls = cluster.plan.profile.stalls
        self.slowest = cluster.plan.slowest

    def _latency(self, machine: Machine) -> float:
        random = self.cluster.random.random
        if machine.slow_until > self.cluster.now:
            return random() * machine.timing.lease * 0.4
        return 0.0002 + random() * self.slowest

    def _up(self, link: Link) -> float:
        now = self.cluster.now
        self._perhaps_lose(link)
        link.up_at = max(link.up_at, now + self._latency(link.machine), link.up_blocked)
        return link.up_at

    def _down(self, link: Link) -> float:
        now = self.cluster.now
        self._perhaps_lose(link)
        link.down_at = max(link.down_at, now + self._latency(link.machine), link.down_blocked)
        return link.down_at

    def _perhaps_lose(self, link: Link) -> None:
        if self.losses and not self.cluster.quiet and self.cluster.random.random() < self.losses:
            self.block(link, inf)

    def block(self, link: Link, until: float) -> None:
        """From now on nothing arrives before `until`, in one direction or in both."""
        direction = self.cluster.random.choice(("up", "down", "both"))
        self.cluster.note("session {} of node {}: {} blocked", link.number, link.machine.number, direction)
        if direction != "down":
            link.up_blocked = max(link.up_blocked, until)
        if direction != "up":
            link.down_blocked = max(link.down_blocked, until)

    # -- connecting and closing ----------------------------------------------------------------------------------------

    def connect(self, machine: Machine, number: int) -> Link:
        cluster = self.cluster
        link = Link(machine, number, machine.cut_until)
        cluster.at(self._up(link), self._accept, link)
        cluster.at(cluster.now + machine.timing.lease / 3, self._give_up, link)
        return link

    def _accept(self, link: Link) -> None:
        server = self.cluster.server
        if not server.up:
            self.cluster.at(self._down(link), self._report, link, n.ConnectFailed("refused"))
            return
        if link.closed:
            return
        machine = link.machine
        session = Session(link.number, Member(machine.identity, machine.plan.priority, True), machine.timing.lease,
                          self.cluster.now)  # fmt: skip
        link.session = session
        server.open(session)
        self.links[session] = link
        self.cluster.at(self.cluster.now + session.lease, self._watch_idle, link)
        self.cluster.at(self._down(link), self._report, link, n.Connected())

    def _give_up(self, link: Link) -> None:
        if link.reported is None:
            self._report(link, n.ConnectFailed("timed out"))

    def _report(self, link: Link, event: n.NodeEvent) -> None:
        if not isinstance(event, n.Disconnected) and link.reported is not None:
            return
        if isinstance(event, n.Disconnected) and link.reported is not n.Connected:
            event = n.ConnectFailed(event.reason)
        if link.machine.up:
            link.machine.feed(event, link)

    def close(self, link: Link) -> None:
        """The client closes: the server learns of it later, or never, and runs what was sent before."""
        if not link.closed:
            link.closed = True
            self.hear_of_end(link)

    def hear_of_end(self, link: Link) -> None:
        at = self._up(link)
        if at < inf:
            self.cluster.at(at, self._end, link)

    def _end(self, link: Link) -> None:
        if link.session is not None:
            self.cluster.server.end(link.session)

    def terminate(self, link: Link, notice: float) -> None:
        """The server ends a session; its client notices after `notice` seconds, if anything arrives there."""
        if link.session is not None:
            self.cluster.server.end(link.session)
            self.links.pop(link.session, None)
        at = self._down(link)
        if at + notice < inf:
            self.cluster.at(at + notice, self._report, link, n.Disconnected("closed by the server"))

    def _watch_idle(self, link: Link) -> None:
        session = link.session
        if session is None or not session.alive:
            return
        end = session.spoke_at + session.lease
        if self.cluster.now >= end - 1e-6:
            self.cluster.note("server: session {} of node {} was idle for too long", link.number, link.machine.number)
            self.terminate(link, 0.0)
        else:
            self.cluster.at(end, self._watch_idle, link)

    # -- statements ----------------------------------------------------------------------------------------------------

    def send(self, link: Link, statement: Statement, sent_at: float) -> None:
        if link.closed:
            return
        at = self._up(link)
        if at < inf:
            self.cluster.at(at, self._arrive, link, statement, sent_at)

    def _arrive(self, link: Link, statement: Statement, sent_at: float) -> None:
        cluster = self.cluster
        if cluster.now < link.busy_until:
            cluster.at(link.busy_until, self._arrive, link, statement, sent_at)
        elif isinstance(statement, n.Poll) and self._stalls():
            link.busy_until = cluster.now + cluster.random.random() * 0.15 * link.machine.timing.lease
            snapshot = dict(cluster.server.rows)
            cluster.at(link.busy_until, self._execute, link, statement, sent_at, snapshot)
        else:
            self._execute(link, statement, sent_at)

    def _stalls(self) -> bool:
        return self.stalls > 0.0 and not self.cluster.quiet and self.cluster.random.random() < self.stalls

    def _execute(
        self, link: Link, statement: Statement, sent_at: float, snapshot: Mapping[str, Row] | None = None
    ) -> None:
        server = self.cluster.server
        session = link.session
        if session is None or not session.alive:
            at = self._down(link)
            if at < inf:
                self.cluster.at(at, self._report, link, n.Disconnected("connection reset"))
            return
        reply = server.execute(session, statement, sent_at, self.cluster.now, snapshot)
        if reply is not None:
            at = self._down(link)
            if at < inf:
                self.cluster.at(at, self._answer, link, reply, statement, sent_at)
        if server.notified:
            for other in self.links.values():
                if other.session is not None and other.session.alive:
                    at = self._down(other)
                    if at < inf:
                        self.cluster.at(at, self._answer, other, n.Notified(), None, 0.0)

    def _answer(self, link: Link, event: n.NodeEvent, statement: Statement | None, sent_at: float) -> None:
        if link.machine.up:
            link.machine.feed(event, link, statement, sent_at)
