"""The keeper's loop: the worker on one side, the lock session on the other, the election in between.

It fails closed both ways. When the worker dies, the keeper kills what the worker left behind, leaves the stopped
marks and releases. When the keeper dies, singleton processes die with it (the kernel sees to that), and the worker
stops its own work. Whoever is frozen is not asked: work that is not confirmed to be stopped is dead, by a signal,
before the lease ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import selectors
import signal
import socket
import threading
from collections import Counter, deque
from math import inf
from typing import Any, TypeVar

from celery_highlander.clock import boot_time
from celery_highlander.config import BEAT
from celery_highlander.election import node as n
from celery_highlander.election import protocol as p
from celery_highlander.election.lease import Timing
from celery_highlander.errors import ERRORS_BY_CODE, DatabaseUnavailableError, HighlanderError, LockSessionError
from celery_highlander.keeper import process_table
from celery_highlander.keeper import run_table as r
from celery_highlander.keeper.beat_desk import BeatDesk
from celery_highlander.keeper.cell import LeaseCell
from celery_highlander.keeper.children import Children
from celery_highlander.keeper.complaints import Complaints
from celery_highlander.keeper.desk import OVERDUE, Desk
from celery_highlander.keeper.ledger import RunLedger
from celery_highlander.keeper.marks import Searcher
from celery_highlander.keeper.messages import Channel, ChannelClosedError, Message, MessageError
from celery_highlander.keeper.processes import Launcher, SingletonProcess, reap_adopted, strays
from celery_highlander.keeper.session import Effect, LockSession, Report, SessionPlan
from celery_highlander.keeper.trace import open_trace
from celery_highlander.keeper.victims import Victim, adopt_orphans, freeze
from celery_highlander.store.connecting import Target
from celery_highlander.store.terms import Identity

logger = logging.getLogger(__name__)

CONNECT_LIMIT = 10.0
"""Seconds after which an attempt to connect is given up, whatever the driver's own time-outs are."""

TARGET_TIMEOUT = 5.0
"""Seconds for the worker to tell where to connect to."""

HAND_ON_RESTS = (30.0, 60.0, 120.0, 300.0, 600.0)
"""Seconds for which a node rests from a singleton that keeps failing here, so that another one gets its chance: the
longer, the more often in a row it has failed."""

FLUSH_AGAIN = 0.01
"""Seconds before the rest of a burst of messages is sent to a worker that is busy reading the first ones."""

REAP_INTERVAL = 0.1
"""Seconds between two looks for dead processes that were adopted."""

LAUNCH_AGAIN = 0.5
"""Seconds before a launcher that died is started again."""

CONFIRM_TIMEOUT = 1.0
"""Seconds for a living worker to say that the tasks which it killed are dead, as far as the lease allows. To kill it
costs more: on a busy machine the replacement of a killed pool child keeps it from saying so for half a second."""

UP_TIMEOUT = 5.0
"""Seconds for a process to be there once the launcher was asked for it."""

_Value = TypeVar("_Value", Timing, Target)

_ENDED = {"action": "process_ended"}
_AWAY = 1.0  # seconds: a gap in our own loop as long as this says nothing about the worker


class Keeper:
    """One keeper, for one worker."""

    def __init__(self, channel: Channel, worker: Victim, hello: Message) -> None:
        now = boot_time()
        self._channel = channel
        self._worker = worker
        self._timing = _known(Timing, hello["timing"])
        self._worker_timeout: float = hello["worker_timeout"]
        self._progress_timeout: float = hello.get("progress_timeout", inf)
        self._kills_worker: bool = hello.get("on_stuck", "kill") == "kill"
        self._cell = LeaseCell(hello["cell"])
        self._cell_descriptor: int = hello["cell"]
        self._children = Children(hello["address"], hello["cell"])
        self._searcher = Searcher(hello["address"], worker.pid, spare=os.getpid())
        self._process_names = frozenset(hello["processes"])
        self._launch: Message = hello["launch"]
        self._launcher: Launcher | None = None
        self._launch_at = now if self._process_names else inf
        self._processes: dict[str, SingletonProcess] = {}
        self._worker_terms: dict[str, int] = {}  # the work that is the worker's to start and stop: name -> token
        self._node = n.Node(
            hello["keys"],
            self._timing,
            random.random,
            node=hello["node"],
            priority=hello.get("priority", 0),
            unmarked=[n.Mark(*mark) for mark in hello.get("unmarked", ())],
        )
        self._plan = SessionPlan(
            target=self._target,
            keys=hello["keys"],
            namespace=hello["namespace"],
            group=hello.get("group") or hello["namespace"],
            schema=hello["schema"],
            migrate=hello.get("migrate", True),
            timing=self._timing,
            who=Identity(hello["node"], hello["worker"], worker.pid),
            priority=hello.get("priority", 0),
            eligible=hello.get("eligible", True),
            release=hello.get("release", ""),
        )
        self._orders: tuple[n.Order, ...] = ()
        self._heartbeats: list[float] = []  # how long they took, not told of yet
        self._ledger = RunLedger(self._plan, lambda runs: self._tell("runs", runs=runs))
        self._beat_desk = BeatDesk(hello["address"], self._plan) if BEAT in hello["keys"] else None
        self._known_target = _known(Target, hello["target"]) if hello["target"] else None
        self._asks_for_target: bool = hello["target"] is None
        self._target_told = threading.Event()
        self._target_error: HighlanderError | None = None
        self._session: LockSession | None = None
        self._session_since = now
        self._complaints = Complaints()
        self._reports: deque[Report] = deque()
        self._events: deque[n.NodeEvent] = deque()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._desk = Desk(hello["address"], self._timing, worker.pid, self._submit)
        self._campaigning: set[str] = set()
        self._phases: dict[str, p.Phase] = {}
        self._heard_at = self._looped_at = self._pulse_at = self._reap_at = now
        self._worker_gone_at: float | None = None
        self._left_at: float | None = None  # since when the worker is gone, or has closed its end
        self._worker_frozen = False
        self._worker_deaf = False
        self._overdue: dict[str, tuple[float, str]] = {}  # work of the worker: when to kill the worker for it, and why
        self._failures: Counter[str] = Counter()  # how often in a row a process was handed on
        self._dying: set[Victim] = set()
        self._orphaned: list[SingletonProcess] = []  # their supervisors were killed; what these adopted is being killed
        self._trace = open_trace()

    # -- the loop ------------------------------------------------------------------------------------------------------

    def run(self, further: list[Message]) -> None:
        """Keep until the worker is gone and nothing is left to clean up.

        Args:
            further: what the worker said together with its hello.
        """
        adopt_orphans()
        self._watch(self._channel, self._hear_worker)
        self._watch(self._worker, self._worker_died)
        self._watch(self._children, self._children.accept)
        self._watch(self._wake_in, self._hear_session)
        for message in further:
            self._take(message, boot_time())
        while not self._finished():
            now = boot_time()
            if now >= self._node.next_deadline(now):
                self._feed(p.Tick(), now)
            self._look_after_desk(now)
            self._node.renew_for_runs(self._desk.needs_heartbeats, now)
            wait = max(0.0, min(self._next_deadline(now) - boot_time(), 1.0))
            for key, _ in self._selector.select(wait):
                if self._selector.get_map().get(key.fd) is key:  # not unregistered by one before it
                    key.data()
            self._look_around(boot_time())
        self._children.close()
        self._desk.close()
        if self._beat_desk is not None:
            self._beat_desk.close()
        if self._launcher is not None:
            self._launcher.end()
        if self._session is not None and self._node.connected:
            self._session.drain(self._timing.heartbeat_timeout)  # the last keys to be given back may be under way
        self._close_session()

    def _look_after_desk(self, now: float) -> None:
        """Serve the desk where the lock session does not."""
        watch = self._session is None or not self._session.attends
        if watch and not self._watches_desk:
            self._watch(self._desk, self._desk.serve)
        elif self._watches_desk and not watch:
            self._selector.unregister(self._desk)
        if watch or now >= self._desk.kill_at:
            self._desk.serve()
        if not self._desk.take_overdue():
            return
        if self._kills_worker:
            self._kill_worker(OVERDUE)
        else:
            logger.critical("%s, and goes on UNSAFELY: highlander_on_stuck is 'continue'", OVERDUE)

    @property
    def _watches_desk(self) -> bool:
        return self._desk.fileno() in self._selector.get_map()

    def _watch(self, source: Any, then: Any) -> None:
        if source.fileno() >= 0:
            self._selector.register(source, selectors.EVENT_READ, then)

    def _finished(self) -> bool:
        if self._left_at is None or self._dying or self._processes or self._worker_terms:
            return False
        overdue = boot_time() > self._left_at + self._timing.lease + CONNECT_LIMIT
        return (
            self._node.idle and self._desk.idle
        ) or overdue  # without our marks the successors wait for the lease, no longer

    def _next_deadline(self, now: float) -> float:
        processes = self._processes.values()
        restarts = min((min(process.restart_at, process.kill_again_at) for process in processes), default=inf)
        flush_at = now + FLUSH_AGAIN if self._channel.has_unsent and not self._worker_deaf else inf
        overdue = min((at for at, _ in self._overdue.values()), default=inf)
        due = min(
            self._node.next_deadline(now),
            self._desk.next_deadline() if self._watches_desk else self._desk.kill_at,
        )
        return min(due, self._pulse_at, self._launch_at, restarts, flush_at, overdue)

    def _look_around(self, now: float) -> None:
        if now - self._looped_at > _AWAY:
            self._heard_at = now  # it was us who was away
        self._looped_at = now
        if now >= self._pulse_at:
            self._pulse_at = now + self._timing.heartbeat_interval
            self._tell("pulse")
            self._tell_counts(now)
        if self._channel.has_unsent:
            self._flush()
        if self._worker_gone_at is None and not self._worker_frozen and now - self._heard_at > self._worker_timeout:
            self._freeze(now)
        if now >= self._launch_at and self._worker_gone_at is None:
            self._start_launcher()
        self._tend_work(now)
        connecting = self._session is not None and not self._node.connected
        if connecting and now - self._session_since > CONNECT_LIMIT:
            self._close_session()
            reason = f"no connection within {CONNECT_LIMIT:g} s"
            self._complain("no lock session: %s", reason, "no_session")
            code = DatabaseUnavailableError.code
            self._tell("refused", code=code, message=reason, hint="", again=True)  # the log has it
            self._feed(n.ConnectFailed(reason), now)
        if self._complaints and self._node.is_steady(now):
            untold = self._complaints.forget()
            if untold:
                logger.info("lock session steady again, after %d more troubles", untold, extra={"action": "steady"})
        for victim in [victim for victim in self._dying if victim.fileno() < 0 and victim.dead]:
            self._buried(victim)
        if now >= self._reap_at:
            self._reap_at = now + REAP_INTERVAL
            reap_adopted(self._launcher)

    def _tend_work(self, now: float) -> None:
        """Start processes again, and kill what is overdue."""
        for process in list(self._processes.values()):
            if now >= process.restart_at:
                self._start_process(process, now)
            elif now >= process.kill_again_at:
                process.kill_again(now)
            elif process.running and process.victim is None and now > process.started_at + UP_TIMEOUT:
                self._end_launcher("it does not start processes", now)
            elif process.is_hung(now, self._progress_timeout):
                logger.error("killing the process of %r: no progress", process.name, extra={"action": "hung"})
                process.hand_on(f"no progress for {self._progress_timeout:g} s")
        for name, (at, reason) in list(self._overdue.items()):
            if now >= at:
                del self._overdue[name]
                self._kill_worker(f"{name!r}: {reason}")

    def _feed(self, event: n.NodeEvent, now: float) -> None:
        """Hand an event to the node and do what it asks; an event that arises meanwhile waits for its turn."""
        self._events.append(event)
        if len(self._events) > 1:
            return
        while self._events:
            effects = self._node.handle(self._events[0], now)
            deadline = self._node.lease_deadline
            self._cell.deadline = self._timing.kill_deadline(deadline) if deadline is not None else 0.0
            for effect in effects:
                self._do(effect, now)
            self._events.popleft()
        self._tell_phases()

    def _do(self, effect: n.NodeEffect, now: float) -> None:
        match effect:
            case n.OpenSession(number):
                self._session = LockSession(number, self._plan, self._desk, self._post)
                self._session_since = now
                self._session.start()
            case n.CloseSession(reason):
                self._complain("lock session given up: %s", reason, "close_session")
                self._close_session()
                self._tell("closed", reason=reason)
                self._desk.feed(r.SessionLost(reason))
            case n.Start(name, token, deadline):
                self._start(name, token, deadline, now)
            case n.Stop(name, token, reason, deadline):
                self._stop(name, token, reason, deadline)
            case n.Kill(name, _, reason):
                self._kill(name, reason, now)
            case _:
                self._submit(effect)

    def _submit(self, effect: Effect) -> None:
        """Called on any thread."""
        session = self._session
        if session is not None:
            session.submit(effect)

    # -- the lock session ----------------------------------------------------------------------------------------------

    def _post(self, report: Report) -> None:
        """Called on the session's thread."""
        self._reports.append(report)
        try:
            self._wake_out.send(b".")
        except BlockingIOError:
            return  # the loop has enough to wake it

    def _hear_session(self) -> None:
        self._wake_in.recv(4096)
        while self._reports:
            report = self._reports.popleft()
            if self._session is None or report.session != self._session.number:
                continue
            if isinstance(report.event, n.ConnectFailed | n.Disconnected):
                self._session = None
            if report.server is not None:
                server = report.server
                again = bool(self._complaints) and not self._complaints.is_new("opened")
                self._tell("opened", backend_pid=server.backend_pid, version=server.version, again=again)
            elif isinstance(report.event, n.Disconnected):
                self._complain("lock session lost: %s", report.event.reason, "session_lost")
                self._tell("closed", reason=report.event.reason)
                self._desk.feed(r.SessionLost(report.event.reason))
            elif report.error is not None:
                error = report.error
                again = not self._complaints.is_new(error.message)
                self._tell("refused", code=error.code, message=error.message, hint=error.hint, again=again)
            self._take_report(report, boot_time())

    def _take_report(self, report: Report, now: float) -> None:
        match report.event:
            case n.HeartbeatAnswered(sent_at):
                self._heartbeats.append(now - sent_at)
            case n.Polled(orders=orders) if orders is not None and orders != self._orders:
                self._tell_of(orders)
            case n.Connected():
                if report.server is not None:
                    self._desk.feed(r.SessionOpen(self._plan.holder(report.session), report.server.instance))
            case _:
                pass
        self._feed(report.event, now)

    def _tell_counts(self, now: float) -> None:
        """Tell the worker, which has the metrics, what has happened since the last time, and what is seen of others."""
        forbidden = [name for name in self._node.contests if self._node.orders.forbids(name)]
        self._tell("seen", sightings=self._node.sightings(now), forbidden=forbidden)
        counts = self._desk.take_counts()
        if self._heartbeats or counts:
            self._tell("counted", counts=counts, values={"heartbeat_seconds": self._heartbeats})
            self._heartbeats = []

    def _tell_of(self, orders: tuple[n.Order, ...]) -> None:
        """Say what operators have asked for, and what is over."""
        for order in orders:
            if order not in self._orders:
                level = logging.WARNING if order.kind.lasts else logging.INFO
                logger.log(level, "%s: %s", order.name or "everything", order.reason, extra={"action": "order"})
        for order in self._orders:
            if order not in orders and order.kind.lasts:
                what = (order.name or "everything", order.kind.value)
                logger.warning("%s: the %s is over", *what, extra={"action": "order"})
        self._orders = orders

    def _complain(self, message: str, reason: str, action: str) -> None:
        level = logging.WARNING if self._complaints.is_new(reason) else logging.DEBUG
        logger.log(level, message, reason, extra={"action": action})

    def _close_session(self) -> None:
        if self._session is not None:
            self._session.abort()
            self._session = None

    def _target(self) -> Target:
        """Called on the session's thread: ask the worker where to connect to."""
        if self._asks_for_target and self._worker_gone_at is None:
            self._target_told.clear()
            self._tell("target_wanted")
            if not self._target_told.wait(TARGET_TIMEOUT):
                raise DatabaseUnavailableError(f"highlander_engine did not return within {TARGET_TIMEOUT:g} s")
            if self._target_error is not None:
                raise self._target_error
        if self._known_target is None:
            raise DatabaseUnavailableError("the worker is gone, and where to connect to was never told")
        return self._known_target

    # -- the worker ----------------------------------------------------------------------------------------------------

    def _tell(self, type_: str, **fields: object) -> None:
        if self._worker_deaf:
            return
        try:
            self._channel.send(type_, **fields)
        except ChannelClosedError:
            self._worker_deaf = True  # if it lives, what it runs is stopped by its silence

    def _flush(self) -> None:
        if not self._worker_deaf:
            try:
                self._channel.flush()
            except ChannelClosedError:
                self._worker_deaf = True

    def _tell_phases(self) -> None:
        for name, contest in self._node.contests.items():
            if self._phases.get(name) is not contest.phase:
                self._phases[name] = contest.phase
                token = contest.term.token if contest.term else None
                self._tell("phase", name=name, phase=contest.phase.value, token=token)

    def _hear_worker(self) -> None:
        try:
            messages = self._channel.receive()
        except ChannelClosedError as error:
            self._selector.unregister(self._channel)
            if isinstance(error, MessageError):
                logger.critical("the worker speaks nonsense: %s", error, extra={"action": "nonsense"})
                self._channel.close()  # it takes us for dead, and stops its work
            self._worker_deaf = True
            self._left_at = self._left_at or boot_time()
            self._leave("the worker closed its end", boot_time(), patient=False)
            return
        now = boot_time()
        self._heard_at = now
        if self._worker_frozen:
            self._worker_frozen = False
            logger.warning("the worker is back", extra={"action": "worker_back"})
            for name in sorted(self._campaigning - self._process_names):
                self._feed(n.To(name, p.Campaign()), now)
        for message in messages:
            self._take(message, now)

    def _take(self, message: Message, now: float) -> None:
        match message["type"]:
            case "campaign":
                for name in self._ours(message["names"]):
                    self._campaigning.add(name)
                    if name not in self._process_names or (self._launcher is not None and self._launcher.ready):
                        self._feed(n.To(name, p.Campaign()), now)
            case "withdraw":
                for name in self._ours(message["names"]):
                    self._withdraw(name, message["reason"], message.get("rest"), message.get("patient", False), now)
            case "work_stopped":
                self._work_stopped(message["name"], message["token"], message["reason"], message.get("rest", 0.0), now)
            case "runs_wanted":
                self._ledger.ask((tick, copy) for tick, copy in message["runs"])
            case "target":
                self._target_error = _error_in(message)
                if self._target_error is None:
                    self._known_target = Target(message["url"], message["connect_args"])
                self._target_told.set()
            case _:
                pass  # "pulse", and whatever a later release says

    def _ours(self, names: list[str]) -> list[str]:
        """The names that are singletons of this node; another release may know others."""
        return [name for name in names if name in self._node.contests]

    def _withdraw(self, name: str, reason: str, rest: float | None, patient: bool, now: float) -> None:
        if rest is None:
            self._campaigning.discard(name)
        self._feed(n.To(name, p.Withdraw(reason, inf if rest is None else rest, patient)), now)

    def _leave(self, reason: str, now: float, *, patient: bool) -> None:
        self._trace("worker_left", "-", 0)
        for name in self._node.contests:
            self._withdraw(name, reason, None, patient, now)

    def _freeze(self, now: float) -> None:
        self._worker_frozen = True
        reason = f"worker silent for {self._worker_timeout:g} s"
        logger.error("the worker's main process is silent: its queues go to another node", extra={"action": "frozen"})
        for name in self._node.contests:
            if name not in self._process_names:
                self._feed(n.To(name, p.Withdraw(reason)), now)

    def _worker_died(self) -> None:
        self._selector.unregister(self._worker)
        now = boot_time()
        self._worker_gone_at = now
        self._left_at = self._left_at or now
        self._worker_deaf = True
        self._target_told.set()
        for process in self._processes.values():
            process.kill(now)
        self._doom(self._registered())  # a child that has not registered has not begun a singleton's task either
        self._leave("worker died", now, patient=False)
        self._all_dead(now)

    def _kill_worker(self, reason: str) -> None:
        if self._worker_gone_at is not None:
            return
        for victim in [self._worker, *self._registered()]:
            victim.send(signal.SIGSTOP)  # before anything is looked for, which may take its time; no child is started
        logger.critical(
            "killing the worker, pid %d: it did not stop its singletons before the lease ends (%s)",
            self._worker.pid,
            reason,
            extra={"action": "kill_worker"},
        )
        self._doom(freeze(self._worker_tree) + self._registered())

    def _find_work(self) -> list[int]:
        """The pool children that live, and what tasks of singleton queues have started, orphans too."""
        return self._searcher.find([child.pid for child in self._children.victims()])

    def _registered(self) -> list[Victim]:
        """The pool children that live, those included that have only just connected."""
        self._children.accept()
        return self._children.victims()

    def _worker_tree(self) -> list[int]:
        """The worker and its descendants, without this keeper and its singleton processes."""
        table = process_table.snapshot()
        mine = {os.getpid(), *process_table.below(os.getpid(), table)}
        tree = [self._worker.pid, *process_table.below(self._worker.pid, table)]
        return [pid for pid in tree if pid not in mine]

    def _doom(self, victims: list[Victim]) -> None:
        known = {victim.pid for victim in self._dying}
        for victim in victims:
            victim.kill()
            if victim.pid not in known:
                known.add(victim.pid)
                self._dying.add(victim)
                self._watch(victim, lambda victim=victim: self._buried(victim))

    def _buried(self, victim: Victim) -> None:
        if victim.fileno() >= 0:
            self._selector.unregister(victim)
        self._dying.discard(victim)
        if not self._dying:
            orphaned, self._orphaned = self._orphaned, []
            for process in orphaned:
                self._process_ended(process)
        self._all_dead(boot_time())

    def _all_dead(self, now: float) -> None:
        """The work of a dead worker has stopped when its children are dead, and what tasks have started in them."""
        if self._worker_gone_at is None or self._dying:
            return
        if self._worker_terms and (left := freeze(self._find_work)):
            self._doom(left)
            return
        for name, token in list(self._worker_terms.items()):
            self._work_stopped(name, token, "", 0.0, now)

    # -- the work ------------------------------------------------------------------------------------------------------

    def _start(self, name: str, token: int, deadline: float, now: float) -> None:
        self._trace("start_work", name, token)
        self._tell("elected", name=name, token=token, lease_deadline=deadline)
        if name in self._process_names:
            process = self._processes[name] = SingletonProcess(name, token)
            self._start_process(process, now)
        else:
            self._worker_terms[name] = token

    def _stop(self, name: str, token: int, reason: str, deadline: float | None) -> None:
        lost = self._node.contests[name].phase is p.Phase.LOST
        self._tell("stop", name=name, token=token, reason=reason, kill_deadline=deadline, lost=lost)
        process = self._processes.get(name)
        if process is None:
            return
        process.stop(reason)
        if not process.running:  # between two starts
            self._process_over(process, "", 0.0)

    def _kill(self, name: str, reason: str, now: float) -> None:
        process = self._processes.get(name)
        if process is not None:
            logger.warning("killing the process of %r: %s", name, reason, extra={"action": "kill_process"})
            process.kill(now)
        elif name in self._worker_terms and self._kills_worker:
            patience = 0.0 if self._worker_frozen or self._worker_deaf else CONFIRM_TIMEOUT
            self._overdue[name] = (min(now + patience, self._cell.deadline), reason)
        elif name in self._worker_terms:
            logger.critical(
                "%r did not stop before its lease ends, and goes on UNSAFELY: highlander_on_stuck is 'continue'",
                name,
                extra={"action": "stuck"},
            )

    def _work_stopped(self, name: str, token: int, reason: str, rest: float, now: float) -> None:
        if self._worker_terms.get(name) != token:
            return  # of an earlier term
        del self._worker_terms[name]
        self._overdue.pop(name, None)
        self._ended(name, token, reason, rest, now)

    def _ended(self, name: str, token: int, reason: str, rest: float, now: float) -> None:
        self._trace("work_stopped", name, token)
        self._feed(n.To(name, p.WorkStopped(reason, rest)), now)
        self._tell("ended", name=name, token=token, reason=reason)

    def _start_launcher(self) -> None:
        self._launch_at = inf
        self._launcher = Launcher(self._launch["argv"], self._launch["load"], self._cell_descriptor)
        self._watch(self._launcher, self._hear_launcher)

    def _hear_launcher(self) -> None:
        launcher = self._launcher
        if launcher is None:
            return
        now = boot_time()
        try:
            messages = launcher.receive()
        except ChannelClosedError:
            self._end_launcher("it died", now)
            return
        for message in messages:
            match message["type"]:
                case "ready":
                    launcher.ready = True
                    self._trace("launcher_ready", "-", 0)
                    self._tell("launcher_ready")
                    for name in sorted(self._campaigning & self._process_names):
                        self._feed(n.To(name, p.Campaign()), now)
                case "failed":
                    logger.error("%s", message["message"], extra={"action": "load"})
                    for name in sorted(self._process_names):
                        self._feed(n.To(name, p.Withdraw("its module cannot be loaded")), now)
                case _:
                    pass

    def _end_launcher(self, reason: str, now: float) -> None:
        """The processes die with it; start another one."""
        if self._launcher is not None:
            logger.warning("starting another launcher of singleton processes: %s", reason, extra={"action": "launcher"})
            self._selector.unregister(self._launcher)
            self._launcher.end()
            self._launcher = None
            self._launch_at = now + LAUNCH_AGAIN

    def _start_process(self, process: SingletonProcess, now: float) -> None:
        if self._launcher is None or not self._launcher.ready:
            process.restart_at = now + LAUNCH_AGAIN
            return
        try:
            process.start(self._launcher, now)
        except ChannelClosedError:
            process.restart_at = now + LAUNCH_AGAIN
            return
        self._watch(process.channel, lambda: self._hear_process(process))

    def _hear_process(self, process: SingletonProcess) -> None:
        if process.channel is None:
            return
        try:
            messages = process.channel.receive()
        except ChannelClosedError as error:
            self._selector.unregister(process.channel)
            if process.victim is None:
                self._process_ended(process)  # it died before it was up
            elif isinstance(error, MessageError):
                logger.critical("the process of %r speaks nonsense: %s", process.name, error, extra=_ENDED)
                process.abort()
            return
        for message in messages:
            match message["type"]:
                case "up":
                    if process.up(message["pid"], message.get("supervisor")) is not None:
                        self._watch(process.victim, lambda: self._process_ended(process))
                    self._tell("process", name=process.name, token=process.token, pid=message["pid"])
                    if process.stopping:
                        process.kill(boot_time())  # told to stop before it began
                case "ended":
                    process.how = message["how"]
                case "clear":
                    process.cleared = True
                case "progress":
                    process.progress_at = boot_time()
                case "counted":
                    self._tell("counted", counts=message["counts"], values=message["values"])
                case _:
                    pass

    def _process_ended(self, process: SingletonProcess) -> None:
        now = boot_time()
        if process.channel is not None:
            with contextlib.suppress(ChannelClosedError):
                for message in process.channel.receive():
                    process.how = message.get("how", process.how)
                    process.cleared = process.cleared or message["type"] == "clear"
        for source in (process.victim, process.channel):
            if source is not None and source.fileno() in self._selector.get_map():
                self._selector.unregister(source)
        if not process.is_clear and (left := freeze(self._strays)):
            self._orphaned.append(process)
            self._doom(left)
            return
        process.ended(self._launcher, now)
        if process.restart_at < inf:
            logger.warning("the process of %r ended (%s); again soon", process.name, process.how, extra=_ENDED)
        elif process.stopping:
            del self._failures[process.name]  # it worked here until it was told to stop
            self._process_over(process, "", 0.0)
        else:
            reason = process.how if process.handed_on else f"its process keeps ending here ({process.how})"
            logger.error("%r is handed on: %s", process.name, reason, extra=_ENDED)
            self._tell("failed", name=process.name, token=process.token, reason=reason)
            rest = HAND_ON_RESTS[min(self._failures[process.name], len(HAND_ON_RESTS) - 1)]
            self._failures[process.name] += 1
            self._process_over(process, reason, rest)

    def _strays(self) -> list[int]:
        return strays(self._launcher, list(self._processes.values()))

    def _process_over(self, process: SingletonProcess, reason: str, rest: float) -> None:
        del self._processes[process.name]
        self._ended(process.name, process.token, reason, rest, boot_time())

    def emergency(self, error: BaseException) -> None:
        """The loop broke: leave nothing running that the election does not watch over."""
        message = str(error) if isinstance(error, HighlanderError) else repr(error)
        if self._launcher is not None:
            self._launcher.end()
        self._close_session()
        logger.critical("the keeper failed: %s", message, exc_info=error, extra={"action": "emergency"})


def _known(type_: type[_Value], fields: Message) -> _Value:
    """Make a value of the fields that this release knows."""
    return type_(**{name: value for name, value in fields.items() if name in type_.__dataclass_fields__})


def _error_in(message: Message) -> HighlanderError | None:
    """The error that a message tells of, if any."""
    if "code" not in message:
        return None
    return ERRORS_BY_CODE.get(message["code"], LockSessionError)(message["message"], message["hint"])
