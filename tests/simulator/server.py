"""A model of PostgreSQL as the protocol uses it: sessions, advisory locks, term rows and stopped marks; no clock."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from celery_highlander.election import node as n
from celery_highlander.election import protocol as p

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery_highlander.election.placement import Member
    from tests.simulator.referee import Referee

Statement = n.Poll | n.Unlock | n.Begin | n.Heartbeat | n.ReleaseLock | n.Show | n.LeaveMarks

TOKENS_PER_TIMELINE = 1 << 32


class Row(NamedTuple):
    """The term row of one singleton."""

    token: int
    heartbeats: int
    owed: float
    instance: int


class Session:
    """A session as the server sees it."""

    __slots__ = ("alive", "lease", "member", "number", "spoke_at")

    def __init__(self, number: int, member: Member, lease: float, now: float) -> None:
        self.number = number
        self.member = member
        self.lease = lease
        self.spoke_at = now
        self.alive = True


class LockServer:
    """One PostgreSQL primary at a time, with its asynchronous replica as a log that the last writes can be cut from."""

    def __init__(self, referee: Referee, clock_floor: bool) -> None:
        self.up = True
        self.timeline = 1
        self.instance = 1
        self.rows: dict[str, Row] = {}
        self.marks: set[tuple[str, int]] = set()
        self.locks: dict[str, Session] = {}
        self.sessions: list[Session] = []
        self.locked_rows: set[str] = set()
        self.notified = False  # the last statement sent a notification
        self._referee = referee
        self._clock_floor = clock_floor
        self._began_by: dict[tuple[str, int], Session] = {}
        self._undo: list[tuple[dict[str, Row | None], tuple[tuple[str, int], ...]]] = []

    # -- sessions and instances ----------------------------------------------------------------------------------------

    def open(self, session: Session) -> None:
        self.sessions.append(session)

    def end(self, session: Session) -> None:
        """End a session: its locks go at once."""
        if session.alive:
            session.alive = False
            self.sessions.remove(session)
            for name in [name for name, holder in self.locks.items() if holder is session]:
                del self.locks[name]

    def go_down(self) -> None:
        for session in list(self.sessions):
            self.end(session)
        self.up = False
        self.locked_rows.clear()

    def come_up(self) -> None:
        self.up = True
        self.instance += 1

    def lose_writes(self, count: int) -> int:
        """Become the replica that has not received the last `count` writes; return how many there were to lose."""
        lost = min(count, len(self._undo))
        for _ in range(lost):
            rows, marks = self._undo.pop()
            for name, row in rows.items():
                if row is None:
                    del self.rows[name]
                else:
                    self.rows[name] = row
            self.marks.difference_update(marks)
        self._undo.clear()  # what came before the promotion is in the new timeline's history
        self.timeline += 1
        return lost

    # -- statements ----------------------------------------------------------------------------------------------------

    def execute(
        self,
        session: Session,
        statement: Statement,
        sent_at: float,
        now: float,
        snapshot: Mapping[str, Row] | None = None,
    ) -> n.NodeEvent | None:
        """Run a statement that the client sent at `sent_at` by its own clock; return what the driver makes of it.

        A poll sees the rows of its `snapshot`, which is older than the locks that it gets.
        """
        session.spoke_at = now
        self.notified = False
        match statement:
            case n.Poll():
                return self._poll(session, statement, self.rows if snapshot is None else snapshot)
            case n.Heartbeat():
                return self._renew(session, statement, sent_at)
            case n.Begin():
                outcomes = {name: self._begin(session, name, sent_at, now) for name in statement.names}
                return n.TermsBegun(outcomes)
            case n.Unlock():
                for name in statement.names:
                    self._unlock(session, name)
            case n.ReleaseLock():
                if statement.mark is not None:
                    self._mark((statement.mark,))
                self._unlock(session, statement.name)
                self.notified = True
                return n.LockReleased(statement.name)
            case n.Show():
                session.member = replace(session.member, eligible=statement.taking_part)
            case n.LeaveMarks():
                self._mark(statement.marks)
                self.notified = True
                return n.MarksLeft(statement.marks)
        return None

    def _poll(self, session: Session, poll: n.Poll, snapshot: Mapping[str, Row]) -> n.Polled:
        rows = []
        for name in poll.names:
            granted = False
            if name in poll.trying:
                holder = self.locks.get(name)
                if holder is session:
                    self._referee.violated(f"session {session.number} tries again for the lock of {name} that it has")
                if holder is None:
                    self.locks[name] = session
                    granted = True
            row = snapshot.get(name)
            if row is None:
                rows.append(n.PollRow(name, granted, None, 0))
            else:
                rows.append(n.PollRow(name, granted, row.token, row.heartbeats))
        stopped = {name: token for name, token in poll.awaited.items() if self.marked(name, token)}
        members = tuple(one.member for one in self.sessions) if poll.members else None
        return n.Polled(tuple(rows), stopped, members)

    def _begin(self, session: Session, name: str, sent_at: float, now: float) -> p.Begun | p.BeginFailed:
        if name in self.locked_rows:
            return p.BeginFailed(rest=0.3)
        row = self.rows.get(name)
        before = None
        if row is not None:
            stopped = self.marked(name, row.token)
            before = p.Predecessor(row.token, row.heartbeats, row.owed, stopped, row.instance == self.instance)
        token = self.next_token(row, now)
        self._undo.append(({name: row}, ()))
        self.rows[name] = Row(token, 0, self.owed(before, session.lease), self.instance)
        self._began_by[name, token] = session
        self._referee.began(name, token)
        return p.Begun(token, sent_at, before)

    def next_token(self, row: Row | None, now: float) -> int:
        floor = self.timeline * TOKENS_PER_TIMELINE
        if self._clock_floor:
            floor += int(now)
        return floor if row is None else max(row.token + 1, floor)

    @staticmethod
    def owed(before: p.Predecessor | None, lease: float) -> float:
        if before is None or (before.stopped and before.same_instance):
            return lease
        return max(lease, before.owed)

    def _renew(self, session: Session, heartbeat: n.Heartbeat, sent_at: float) -> n.NodeEvent:
        if self.unrenewable(heartbeat):
            return n.Disconnected("not every term was renewed")
        before: dict[str, Row | None] = {}
        for name, token in heartbeat.terms.items():
            if self._began_by.get((name, token)) is not session:
                self._referee.suspected(f"term {token:#x} of {name} lives on after its session")
            row = self.rows[name]
            before[name] = row
            owed = session.lease if name in heartbeat.acting else row.owed
            self.rows[name] = Row(row.token, row.heartbeats + 1, owed, row.instance)
        if before:
            self._undo.append((before, ()))
        return n.HeartbeatAnswered(sent_at)

    def unrenewable(self, heartbeat: n.Heartbeat) -> bool:
        """Whether some row is not the one of the term that is to be renewed."""
        for name, token in heartbeat.terms.items():
            row = self.rows.get(name)
            if row is None or row.token != token:
                return True
        return False

    def marked(self, name: str, token: int) -> bool:
        return (name, token) in self.marks

    def _mark(self, marks: tuple[n.Mark, ...]) -> None:
        new = tuple((mark.name, mark.token) for mark in marks)
        for name, token in new:
            self._referee.marked(name, token)
        self._undo.append(({}, tuple(mark for mark in new if mark not in self.marks)))
        self.marks.update(new)

    def _unlock(self, session: Session, name: str) -> None:
        if self.locks.get(name) is session:
            del self.locks[name]
