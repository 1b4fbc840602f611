"""The lock session: a thread with the one connection, doing what the election asks and reporting what came of it.

One thread per session: one that hangs in the driver is cut off (its socket is shut down) and left behind, while
the keeper goes on.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import socket
import threading
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from celery_highlander.clock import boot_time
from celery_highlander.election import node as n
from celery_highlander.errors import DatabaseUnavailableError, HighlanderError, SchemaError
from celery_highlander.keeper import run_table as r
from celery_highlander.store import connecting, migrations, waiting
from celery_highlander.store.runs import RunLocks
from celery_highlander.store.terms import Identity, Terms, application_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from celery_highlander.election.lease import Timing
    from celery_highlander.keeper.desk import Desk


_LONGEST_WAIT = 1.0  # seconds
_MOMENT = 0.1  # seconds: most statements take far less


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """What a lock session needs to know.

    Attributes:
        target: returns where to connect to; asked anew for every session, may take its time, may raise.
        keys: the lock key of each singleton.
        group: what the nodes have in common that share them, as shown in `pg_stat_activity`.
        release: the version of the worker's package.
    """

    target: Callable[[], connecting.Target]
    keys: Mapping[str, int]
    namespace: str
    group: str
    schema: str
    migrate: bool
    timing: Timing
    who: Identity
    priority: int
    eligible: bool
    release: str = ""

    def holder(self, session: int) -> str:
        """What session number `session` of this node is called where runs rely on it."""
        return f"{self.who.node}/{session}"

    def name(self, *, eligible: bool) -> str:
        """How the session shows in `pg_stat_activity`."""
        return application_name(self.group, self.who.node, self.priority, eligible=eligible)


@dataclass(frozen=True, slots=True)
class Claim:
    """Record a message that is about to be sent; answer with `Claimed`."""

    number: int
    message: waiting.Waiting


@dataclass(frozen=True, slots=True)
class Claimed:
    """The answer to a claim, or to `Forget`, by its number: what waits already; or why that cannot be said."""

    number: int
    found: waiting.Row | None
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Forget:
    """Free the rows of messages that wait no more; answer with `Claimed` where there is a number."""

    task_ids: tuple[str, ...]
    number: int | None = None


Effect = n.NodeEffect | r.RunEffect | Claim | Forget
"""What may be asked of a lock session."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a session tells: an event for the node, and for a failed one the error, for an open one its server."""

    session: int
    event: n.NodeEvent
    error: HighlanderError | None = None
    server: connecting.Server | None = None


class LockSession(threading.Thread):
    """Session `number`. It serves the `desk`; `post` gets its reports, on this thread, and has to be quick."""

    def __init__(self, number: int, plan: SessionPlan, desk: Desk, post: Callable[[Report], None]) -> None:
        super().__init__(name=f"lock-session-{number}", daemon=True)
        self.number = number
        self.holder = plan.holder(number)
        self._plan = plan
        self._desk = desk
        self._post = post
        self._work: queue.SimpleQueue[Effect | threading.Event] = queue.SimpleQueue()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._closing = False
        self._away_since = -inf  # since when it does not look after the desk
        self._socket: socket.socket | None = None

    # -- called by the keeper's main thread ----------------------------------------------------------------------------

    @property
    def attends(self) -> bool:
        """Whether it looks after the desk, but for a moment."""
        return boot_time() - self._away_since < _MOMENT

    def submit(self, effect: Effect) -> None:
        """Have `effect` done, after those that were submitted before; also called on this thread, by the desk."""
        self._work.put(effect)
        if threading.get_ident() != self.ident:
            with contextlib.suppress(OSError):
                self._wake_out.send(b".")

    def drain(self, timeout: float) -> None:
        """Wait until everything that was submitted is done, for `timeout` seconds at most."""
        done = threading.Event()
        self._work.put(done)
        with contextlib.suppress(OSError):
            self._wake_out.send(b".")
        done.wait(timeout)

    def abort(self) -> None:
        """End the session now, also in the middle of a statement that the server does not answer."""
        self._closing = True
        sock = self._socket
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._wake_out.send(b".")

    # -- the thread ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Open the session, then serve it until it breaks or is aborted."""
        connection = None
        target = connecting.Target("postgresql://", {})
        try:
            target = self._plan.target()
            connection = connecting.open_connection(
                target, self._plan.name(eligible=self._plan.eligible), self._plan.timing
            )
            driver: Any = connection.connection.driver_connection
            self._socket = socket.socket(fileno=os.dup(driver.fileno()))
            terms, runs, server = self._set_up(connection)
        except Exception as error:  # noqa: BLE001  # whatever keeps the session from opening is reported, none may escape
            reason = connecting.plain(error, target)
            told = error if isinstance(error, HighlanderError) else DatabaseUnavailableError(reason)
            self._report(n.ConnectFailed(reason), error=told)
            self._close(connection)
            return
        self._report(n.Connected(), server=server)
        try:
            self._serve(driver, terms, runs)
            reason = "closed"
        except Exception as error:  # noqa: BLE001  # after any error nobody knows what the server did: the session ends
            reason = connecting.plain(error, target)
        self._away_since = -inf
        self._close(connection)
        self._report(n.Disconnected(reason))

    def _set_up(self, connection: Any) -> tuple[Terms, RunLocks, connecting.Server]:
        plan = self._plan
        server = connecting.check_server(connection)
        migrations.ensure(connection, plan.schema, may_migrate=plan.migrate)
        connecting.guard_session(connection, plan.timing)
        terms = Terms(connection, server, plan.keys, plan.namespace, plan.schema, plan.timing.lease, plan.group)
        terms.check_collisions()
        terms.rehearse(plan.who)
        terms.enrol(plan.who, plan.release)
        terms.listen()
        runs = RunLocks(connection, server, self.holder, plan.namespace, plan.schema, plan.timing.lease)
        return terms, runs, server

    def _report(self, event: n.NodeEvent, **more: Any) -> None:
        if not self._closing:
            self._post(Report(self.number, event, **more))

    def _serve(self, driver: Any, terms: Terms, runs: RunLocks) -> None:
        notifications = Notifications(driver)
        poll = select.poll()
        for source in (driver, self._wake_in, self._desk):
            poll.register(source.fileno(), select.POLLIN)
        while not self._closing:
            wait = min(self._desk.next_deadline() - boot_time(), _LONGEST_WAIT)
            self._away_since = inf
            ready = {descriptor for descriptor, _ in poll.poll(max(0.0, wait) * 1000)}
            self._away_since = boot_time()
            if self._wake_in.fileno() in ready:
                with contextlib.suppress(BlockingIOError):
                    self._wake_in.recv(4096)
            self._desk.serve()
            while not self._closing:
                try:
                    effect = self._work.get_nowait()
                except queue.Empty:
                    break
                if isinstance(effect, threading.Event):
                    effect.set()
                else:
                    self._do(effect, terms, runs)
            if notifications.take(arrived=driver.fileno() in ready):
                self._report(n.Notified())

    def _do(self, effect: Effect, terms: Terms, runs: RunLocks) -> None:
        sent_at = boot_time()  # before it is sent: a slow reply must not extend the lease
        match effect:
            case n.Poll(names, trying, awaited, members):
                rows, stopped = terms.poll(names, trying), terms.stopped(awaited)
                more = (terms.members(), terms.orders()) if members else (None, None)
                self._report(n.Polled(rows, stopped, *more))
            case n.Begin(names):
                self._report(n.TermsBegun(terms.begin(names, self._plan.who, sent_at)))
            case n.Heartbeat(held, acting, for_runs):
                terms.heartbeat(held, acting)
                if for_runs:
                    runs.beat()
                    self._desk.answer(self.holder, r.Beaten(sent_at))
                self._report(n.HeartbeatAnswered(sent_at))
            case n.Unlock(names):
                terms.unlock(names)
            case n.Show(taking_part):
                terms.rename(self._plan.name(eligible=taking_part and self._plan.eligible))
            case n.ReleaseLock(name, mark):
                terms.release(name, mark)
                self._report(n.LockReleased(name))
            case n.LeaveMarks(marks):
                terms.leave_marks(marks, notify=True)
                self._report(n.MarksLeft(marks))
            case _:
                answer = self._do_for_runs(effect, runs, sent_at)
                if answer is not None:
                    self._desk.answer(self.holder, answer)

    def _do_for_runs(self, effect: Effect, runs: RunLocks, sent_at: float) -> r.RunEvent | Claimed | None:
        match effect:
            case r.Take(free, tries, excluded, paid):
                if free:
                    runs.free(free)
                if tries:
                    return r.Taken(runs.take(tries, excluded, paid))
            case r.Register():
                return self._register(runs, sent_at)
            case r.Look():
                return r.Looked(runs.runners())
            case r.Settle():
                runs.settle()
            case r.MarkRuns(ended):
                runs.mark(ended)
            case Claim(number, message):
                return _claim(runs, number, message)
            case Forget(task_ids, number):
                with contextlib.suppress(SchemaError):
                    runs.forget(task_ids)
                return None if number is None else Claimed(number, None)
            case _:
                raise TypeError(f"{type(effect).__name__} is not for the lock session")
        return None

    def _register(self, runs: RunLocks, sent_at: float) -> r.Registered | r.Refused:
        try:
            return r.Registered(sent_at, runs.register(self._plan.who))
        except SchemaError as error:
            return r.Refused(str(error))

    def _close(self, connection: Any) -> None:
        """Drop the connection, without any farewell that could block: the server notices, and frees the locks."""
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.connection.driver_connection.close()
            with contextlib.suppress(Exception):
                connection.close()
        if self._socket is not None:
            self._socket.close()
        self._wake_in.close()
        self._wake_out.close()


def _claim(runs: RunLocks, number: int, message: waiting.Waiting) -> Claimed:
    try:
        return Claimed(number, runs.claim(message))
    except SchemaError as error:
        return Claimed(number, None, str(error))


class Notifications:
    """What the server sends by itself, on a connection of either driver; a statement may take it in as well.

    Args:
        driver: the driver's connection.
    """

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._is_psycopg3 = hasattr(driver, "pgconn")
        self._are_there = False
        if self._is_psycopg3:
            driver.add_notify_handler(self._hear)  # of those that come with an answer

    def _hear(self, _notification: object) -> None:
        self._are_there = True

    def take(self, *, arrived: bool = True) -> bool:
        """Return whether there were any, and forget them.

        Args:
            arrived: whether something has arrived that no statement has taken in.

        Raises:
            Exception: the driver's own, if the connection broke.
        """
        if self._is_psycopg3:
            if arrived:
                self._driver.pgconn.consume_input()
            while self._driver.pgconn.notifies() is not None:
                self._are_there = True
        else:
            if arrived:
                self._driver.poll()
            self._are_there = bool(self._driver.notifies)
            self._driver.notifies.clear()
        found, self._are_there = self._are_there, False
        return found
