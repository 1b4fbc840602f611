"""The worker's link to its keeper: starts it, listens to it, and stops the worker's work without it.

One native thread does all of that. Beside the keeper it is the second who holds the deadline: the lease cell says
until when work may run, and this thread stops and kills the worker's work by it, whether the keeper says so or
not.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from celery_highlander.clock import boot_time
from celery_highlander.errors import ERRORS_BY_CODE, HighlanderError, LockSessionError
from celery_highlander.keeper import cell as lease_cell
from celery_highlander.keeper import children, marks
from celery_highlander.keeper.messages import Channel, ChannelClosedError, Message, MessageError
from celery_highlander.keeper.victims import reap_inherited
from celery_highlander.keeper.vocabulary import KEEPER_SAYS
from celery_highlander.worker import monitoring, native, signals
from celery_highlander.worker.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_highlander.config import Settings
    from celery_highlander.store.connecting import Target
    from celery_highlander.worker.broker import BrokerWatch
    from celery_highlander.worker.deadman import DeadMansSwitch
    from celery_highlander.worker.monitoring import Monitors
    from celery_highlander.worker.once import RunOnce

logger = logging.getLogger("celery_highlander")

RESPAWN_DELAY = 0.2
"""Seconds before a keeper that died is started again."""

KEEPER_EXIT_TIMEOUT = 2.0
"""Seconds that a keeper gets to end once everything is released and its channel closed."""

# A pool child that the main thread forks while a keeper is being started would inherit the keeper's end of the
# channel, and keep it open.
_no_fork = native.lock()
os.register_at_fork(before=_no_fork.acquire, after_in_parent=_no_fork.release, after_in_child=_no_fork.release)

_PATIENCE = 0.02  # seconds between two looks at work that has to stop


class Work(Protocol):
    """A singleton's work in the worker itself. Called on the link's thread; must not block and must not raise."""

    def start(self, token: int, elected_at: float) -> None:
        """The work may act."""

    def stop(self, reason: str, kill_at: float | None, *, hung: bool) -> None:
        """The work has to stop; what is left at `kill_at` (boot-time clock; None: never) has to be killed.

        `hung`: because the worker's main loop hangs.
        """

    def tend(self, now: float) -> None:
        """Called about once in a heartbeat interval while the work may act."""

    def is_over(self, now: float) -> bool:
        """Kill what is overdue; return whether no work is left."""


class Progress(Protocol):
    """Whether what does the work makes progress. Called on the link's thread.

    Attributes:
        timeout: seconds without progress after which it counts as hung.
    """

    timeout: float

    def is_hung(self, now: float) -> bool:
        """Return whether it hangs."""


@dataclass(frozen=True, slots=True)
class LinkPlan:
    """What the link needs to know.

    Attributes:
        keys: the lock keys of the singletons, by name.
        worker: under which name the process is shown.
        processes: the singleton processes, by name: dotted paths.
        load: how they are launched.
        target: returns where to connect to.
        target_changes: whether it has to be asked for each connection.
        group: whom this node shares its singletons with; the namespace if empty.
    """

    settings: Settings
    keys: dict[str, int]
    worker: str
    processes: dict[str, str]
    load: dict[str, Any]
    target: Callable[[], Target]
    target_changes: bool
    group: str = ""


@dataclass(slots=True)
class Held:
    """A term that this node holds, as far as the worker knows."""

    token: int
    elected_at: float
    stopping: bool = False
    reason: str = ""


@dataclass(slots=True)
class Snapshot:
    """What `inspect highlander` shows; replaced as a whole, never changed."""

    connected: bool = False
    phases: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, int | None] = field(default_factory=dict)
    pids: dict[str, int] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Vitals:
    """Signs of life, on the boot-time clock.

    Attributes:
        turned_at: when the link's thread last went round.
        heard_at: when the keeper was last heard of, or until when it need not be.
        keeper_timeout: for how many seconds it may be silent.
        hung_for: for how many seconds, at least, the main loop has made no progress; None where it does.
        leads: what this node leads.
        renewed_at: when the last heartbeat was sent that was answered; None where no lease runs.
        renewed_every: how old that may be before the next one is overdue.
    """

    turned_at: float
    heard_at: float
    keeper_timeout: float
    hung_for: float | None
    leads: tuple[str, ...]
    renewed_at: float | None
    renewed_every: float


class KeeperLink:
    """The link of one worker.

    Attributes:
        works: the work of the singletons that the worker itself runs, by name.
        loop: whether the worker's main loop goes round.
        switch: has the kernel kill this worker at the end of the lease, where its tasks run in this very process.
        once: what waits for the ledger's word on ticks that may have run already.
        announce: runs a function that tells the application of something, on a thread where that is allowed.
        monitors: hear of everything, too.
        metrics: count it.
    """

    def __init__(self, plan: LinkPlan, broker: BrokerWatch | None) -> None:
        self._plan = plan
        self._broker = broker
        self.works: dict[str, Work] = {}
        self.loop: Progress | None = None
        self.switch: DeadMansSwitch | None = None
        self.once: RunOnce | None = None
        self.announce: Callable[[Callable[[], object]], object] = lambda tell: tell()
        self.monitors: Monitors | None = None
        self.metrics = Metrics(plan.keys, plan.settings.lease_duration)
        self._timing = plan.settings.timing
        self.node = uuid.uuid4().hex[:12]
        self.snapshot = Snapshot()
        self._cell_descriptor = lease_cell.create()
        self.cell = lease_cell.LeaseCell(self._cell_descriptor)
        self._address = children.new_address()
        self._keeper: native.Process | None = None
        self._channel: Channel | None = None
        self._respawn_at = 0.0
        self._heard_at = self._pulse_at = self._looped_at = 0.0
        self._held: dict[str, Held] = {}  # the worker's own work
        self._process_terms: dict[str, int] = {}  # terms whose work is the keeper's
        self._reported: dict[str, tuple[int, str]] = {}  # our own work is over, and the keeper has yet to say so
        self._ends: dict[str, tuple[str, bool]] = {}  # why a term that has to stop ends, and whether it was lost
        self._unmarked: list[tuple[str, int, str]] = []
        self._orders: deque[Callable[[], None]] = deque()
        self._wake_in, self._wake_out = native.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._campaigning: set[str] = set()
        self._paused: set[str] = set()  # on this node, by remote control
        self._without_broker = False
        self._hung = False
        self._stuck = False
        self._leaving = False
        self._is_patient = False
        self._closed = False
        self._first_word = native.Latch()
        self._refusal: HighlanderError | None = None
        self._released = native.Latch()
        self._thread_ended = native.Latch()

    # -- called by the worker's other threads --------------------------------------------------------------------------

    @property
    def keeper_pid(self) -> int | None:
        """The keeper's pid; None while there is none."""
        return self._keeper.pid if self._keeper is not None else None

    @property
    def vitals(self) -> Vitals:
        """Signs of life; safe on any thread."""
        hung_for = self.loop.timeout if self._hung and self.loop is not None else None
        leads = (*list(self._held), *list(self._process_terms))
        timing, deadline = self._timing, self.cell.deadline
        renewed_at = deadline - timing.kill_deadline(timing.lease) if deadline else None
        return Vitals(
            turned_at=self._looped_at,
            heard_at=self._heard_at,
            keeper_timeout=self._plan.settings.worker_timeout,
            hung_for=hung_for,
            leads=leads,
            renewed_at=renewed_at,
            renewed_every=timing.heartbeat_interval + timing.heartbeat_timeout,
        )

    @property
    def paused(self) -> frozenset[str]:
        """What this node has been told by remote control not to lead."""
        return frozenset(self._paused)

    def start(self, timeout: float) -> None:
        """Start the keeper, and wait for its first word from the database, for `timeout` seconds at most.

        Raises:
            HighlanderError: the database may not be used as it is (a pooler, a standby, missing rights, …).
        """
        os.environ[children.ADDRESS_VARIABLE] = self._address
        os.environ[children.LEDGER_VARIABLE] = children.ledger_address(self._address)
        self._spawn()
        native.start_thread(self._run)
        self._first_word.wait(timeout)
        if self._refusal is not None:
            self._closed = True
            self._wake()
            raise self._refusal

    def campaign(self, names: list[str]) -> None:
        """Take part in the elections of `names`."""
        self._order(lambda: self._campaign(names))

    def withdraw(self, names: list[str], reason: str, rest: float | None = None, *, patient: bool = False) -> None:
        """Give up leading `names`; for good, or for `rest` seconds. Safe in a signal handler."""
        self._order(lambda: self._withdraw(names, reason, rest, patient))

    def leave(self, reason: str, *, patient: bool = True) -> None:
        """Give up everything; a patient one lets running tasks finish. Safe in a signal handler."""

        def order() -> None:
            if not self._leaving or (self._is_patient and not patient):
                self._leaving = True
                self._is_patient = patient
                self._withdraw(list(self._plan.keys), reason, None, patient)

        self._order(order)

    def pause(self, name: str, reason: str) -> None:
        """Take no part in the election of `name` until `resume`; running tasks may finish."""

        def order() -> None:
            self._paused.add(name)
            self._tell("withdraw", names=[name], reason=reason, rest=None, patient=True)

        self._order(order)

    def resume(self, name: str) -> None:
        """Take part again, where `pause` had ended that."""

        def order() -> None:
            self._paused.discard(name)
            if name in self._campaigning:
                self._tell("campaign", names=[name])

        self._order(order)

    def ask_for_runs(self, runs: list[tuple[str, str]]) -> None:
        """Ask whether copies of the messages of ticks may be run; `once` gets the answer, if this keeper lives."""
        self._order(lambda: self._tell("runs_wanted", runs=runs))

    def finish(self, timeout: float) -> bool:
        """After the pool is drained: wait until everything is released; return whether it was within `timeout`."""
        self.leave("worker shutting down")
        self._order(self._look_whether_released)
        done = self._released.wait(timeout)
        self._closed = True
        self._wake()
        self._thread_ended.wait(1.0)
        if self._keeper is not None:  # SIGHUP starts another worker in this process: it would never reap a zombie
            self._keeper.wait(KEEPER_EXIT_TIMEOUT)
        return done

    def _order(self, order: Callable[[], None]) -> None:
        self._orders.append(order)
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_out.send(b".")

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closed:
            try:
                self._turn()
            except Exception as error:  # noqa: BLE001, PERF203  # it must go on, whatever happens
                self._failed_with(error)
        if self._channel is not None:
            self._channel.close()
        self._thread_ended.set()

    def _failed_with(self, error: Exception) -> None:
        """Stop the singletons of this worker; where not even that can be done, the worker itself."""
        try:
            self._keeper_lost("the link failed")
        except Exception:
            if self._held and self._plan.settings.on_stuck == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            logger.critical("the link to the keeper failed, and could not stop its singletons", exc_info=True)
        logger.critical("the link to the keeper failed: stopping this worker's singletons", exc_info=error)

    def _turn(self) -> None:
        now = boot_time()
        poll = native.poll()
        poll.register(self._wake_in, select.POLLIN)
        if self._channel is not None:
            poll.register(self._channel, select.POLLIN)
        stopping = any(held.stopping for held in self._held.values())
        unsent = self._channel is not None and self._channel.has_unsent
        limit = _PATIENCE if stopping or unsent else max(0.0, min(self._pulse_at - now, 1.0))
        ready = {descriptor for descriptor, _ in poll.poll(limit * 1000)}
        if self._wake_in.fileno() in ready:
            self._wake_in.recv(4096)
        if self._channel is not None and self._channel.fileno() in ready:
            self._hear()
        while self._orders:
            self._orders.popleft()()
        self._look_around(boot_time())

    def _look_around(self, now: float) -> None:
        if now - self._looped_at > 1.0 + self._timing.heartbeat_interval:
            self._heard_at = max(self._heard_at, now - 1.0)  # it was us who was away: the keeper gets a moment
        self._looped_at = now
        if now >= self._pulse_at:
            self._pulse_at = now + self._timing.heartbeat_interval
            self._tell("pulse")
        if self._channel is not None and self._channel.has_unsent:
            with contextlib.suppress(ChannelClosedError):  # its end shows when we read
                self._channel.flush()
        if self._channel is None:
            if now >= self._respawn_at and not self._held and not self._leaving:
                self._spawn()
        elif now - self._heard_at > self._plan.settings.worker_timeout:
            logger.error("the keeper is silent for %.1f s: killing it", now - self._heard_at)
            self._keeper_lost("keeper silent")
        self._watch_lease(now)
        self._watch_broker(now)
        self._watch_loop(now)
        for name, held in list(self._held.items()):
            if not held.stopping:
                self.works[name].tend(now)
            elif self.works[name].is_over(now):
                self._over(name)
        if self.switch is not None:
            self.switch.set(self.cell.deadline if self._held else 0.0)
        if self._held and now >= self.cell.deadline:
            self._die()
        self._look_whether_released()

    def _watch_lease(self, now: float) -> None:
        """Hold the deadline ourselves: with no word from the keeper the work stops in time all the same."""
        deadline = self.cell.deadline
        if not self._held or now < deadline - self._timing.drain_timeout:
            return
        for name, held in list(self._held.items()):
            if not held.stopping:
                self._stop(name, held.token, "lease not renewed in time", deadline, lost=True)

    def _watch_broker(self, now: float) -> None:
        gone = self._broker.gone_since(now) if self._broker is not None else None
        timeout = self._plan.settings.broker_timeout
        if gone is None and self._without_broker:
            self._without_broker = False
            self._campaign(sorted(self.works))
        if gone is None or self._leaving or now - gone < timeout or not self._campaigning & set(self.works):
            return
        self._without_broker = True
        logger.warning("no broker for %g s: stepping down from its queues until it is back", timeout)
        self._withdraw(sorted(self.works), f"no broker for {timeout:g} s", None, False)

    def _watch_loop(self, now: float) -> None:
        """A main loop that hangs takes messages and does nothing with them: another node gets its queues."""
        if self.loop is None or self._leaving:
            return
        hung = self.loop.is_hung(now)
        if hung and not self._hung:
            logger.critical("the worker's main loop made no progress for %g s", self.loop.timeout)
            self._hung = True
            self._withdraw(sorted(self.works), f"main loop hung for {self.loop.timeout:g} s", None, False)
        elif self._hung and not hung:
            logger.warning("the worker's main loop makes progress again")
            self._hung = False
            self._campaign(sorted(self.works))

    def _die(self) -> None:
        """The lease ends, there is work left, and no keeper that would kill this worker: so it is for us to do."""
        names = ", ".join(self._held)
        if self._plan.settings.on_stuck == "kill":
            logger.critical("killing this worker: %s did not stop before the lease ends", names)
            os.kill(os.getpid(), signal.SIGKILL)
        elif not self._stuck:
            self._stuck = True
            logger.critical("%s did not stop before the lease ends, and go on UNSAFELY: highlander_on_stuck", names)

    # -- the keeper ----------------------------------------------------------------------------------------------------

    def _spawn(self) -> None:
        settings = self._plan.settings
        reap_inherited(native.waitpid)
        with _no_fork:
            ours, theirs = native.socketpair()
            try:
                self._keeper = native.Process(
                    [sys.executable, "-m", "celery_highlander.keeper", str(theirs.fileno())],
                    pass_fds=(theirs.fileno(), self._cell_descriptor),
                    env=_environment(),
                )
            finally:
                theirs.close()
        self._channel = Channel(ours, KEEPER_SAYS)
        self._heard_at = boot_time() + settings.worker_timeout + 10.0  # its first word may take the time of its imports
        self._pulse_at = 0.0
        self.node = uuid.uuid4().hex[:12]  # a new keeper is a new node: its session and its terms are its own
        changing = self._plan.target_changes
        target = None if changing else self._plan.target()
        self._tell(
            "hello",
            pid=os.getpid(),
            node=self.node,
            worker=self._plan.worker,
            cell=self._cell_descriptor,
            address=self._address,
            timing={name: getattr(self._timing, name) for name in self._timing.__dataclass_fields__},
            worker_timeout=settings.worker_timeout,
            keys=self._plan.keys,
            namespace=settings.namespace,
            group=self._plan.group or settings.namespace,
            schema=settings.schema,
            migrate=settings.migrate,
            priority=settings.priority,
            eligible=settings.eligible,
            release=version("celery-highlander"),
            on_stuck=settings.on_stuck,
            progress_timeout=settings.progress_timeout,
            unmarked=self._unmarked,
            target=None if target is None else {"url": target.url, "connect_args": target.connect_args},
            processes=self._plan.processes,
            launch={
                "argv": [sys.executable, "-m", "celery_highlander.worker.launcher"],
                "load": self._plan.load,
            },
        )
        self._unmarked = []
        self._tell("campaign", names=sorted(self._campaigning - self._paused))
        if self.once is not None:
            self.once.ask_again()

    def _tell(self, type_: str, **fields: object) -> None:
        if self._channel is not None:
            with contextlib.suppress(ChannelClosedError):  # its end shows when we read
                self._channel.send(type_, **fields)

    def _hear(self) -> None:
        if self._channel is None:
            return
        try:
            messages = self._channel.receive()
        except ChannelClosedError as error:
            if not self._closed:
                self._keeper_lost(
                    f"nonsense of the keeper ({error})" if isinstance(error, MessageError) else "keeper died"
                )
            return
        self._heard_at = boot_time()
        for message in messages:
            self._take(message)

    def _keeper_lost(self, reason: str) -> None:
        """No keeper: what runs here stops before the lease ends, and what the keeper ran dies with it."""
        if self._keeper is not None:
            with contextlib.suppress(OSError):
                self._keeper.kill()
            self._keeper.wait(KEEPER_EXIT_TIMEOUT)  # one that hangs in the kernel may not hang us, too
            self._keeper = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if not self._leaving:
            logger.error("%s: stopping this worker's singletons until there is a new one", reason)
        self._respawn_at = boot_time() + RESPAWN_DELAY
        now = boot_time()
        deadline = min(self.cell.deadline, now + self._timing.drain_timeout)
        for name, held in list(self._held.items()):
            self._stop(name, held.token, reason, deadline, lost=True)
        self._unmarked += [(name, token, why) for name, (token, why) in self._reported.items()]
        for name, token in [
            *self._process_terms.items(),
            *((name, token) for name, (token, _) in self._reported.items()),
        ]:
            self._ends.setdefault(name, (reason, True))
            self._told_end(name, token, reason)
        self._reported.clear()
        self._process_terms.clear()
        self.snapshot = Snapshot(reason=reason)
        self.metrics.see({}, ())

    # -- messages ------------------------------------------------------------------------------------------------------

    def _take(self, message: Message) -> None:
        match message["type"]:
            case "opened":
                self._show(connected=True, reason="")
                self._first_word.set()
                level = logging.DEBUG if message.get("again") else logging.INFO  # once in a trouble
                logger.log(level, "highlander: lock session open, backend %s", message["backend_pid"])
            case "closed":
                self._disconnected(message["reason"], "lost")
            case "refused":
                self._refused(message)
            case "elected":
                self._elected(message["name"], message["token"])
            case "stop":
                deadline, lost = message["kill_deadline"], message.get("lost", False)
                self._stop(message["name"], message["token"], message["reason"], deadline, lost=lost)
            case "ended":
                self._ended(message["name"], message["token"], message["reason"])
            case "phase":
                self._show_phase(message["name"], message["phase"], message["token"])
            case "failed":
                self._failed(message["name"], message["token"], message["reason"])
            case "counted" | "seen":
                self._measure(message)
            case "launcher_ready":
                logger.info("highlander: singleton processes can run here")
            case "process":
                self._show(pids={**self.snapshot.pids, message["name"]: message["pid"]})
            case "runs" if self.once is not None:
                self.once.answered(message["runs"])
            case "target_wanted":
                self._tell_target()
            case "log":
                logger.log(message["level"], "%s", message["message"], extra={"action": message.get("action")})
            case _:
                pass  # "pulse", and whatever a later release says

    def _show(self, **changes: Any) -> None:
        old = self.snapshot
        values = {name: getattr(old, name) for name in old.__dataclass_fields__}
        self.snapshot = Snapshot(**{**values, **changes})

    def _show_phase(self, name: str, phase: str, token: int | None) -> None:
        self._show(phases={**self.snapshot.phases, name: phase}, tokens={**self.snapshot.tokens, name: token})
        self.metrics.phase(name, phase)
        if phase == "waiting":
            self._tell_monitors(monitoring.TAKEOVER_WAITING, name, token)

    def _measure(self, message: Message) -> None:
        if message["type"] == "counted":
            self.metrics.take(message["counts"], message["values"])
        else:
            self.metrics.see(message["sightings"], message["forbidden"])

    def _failed(self, name: str, token: int, reason: str) -> None:
        self._tell_monitors(monitoring.SINGLETON_FAILED, name, token, reason=reason)
        self.metrics.count("failures_total", singleton=name)

    def _refused(self, message: Message) -> None:
        error = ERRORS_BY_CODE.get(message["code"], LockSessionError)(message["message"], message["hint"])
        if error.code != "database_unavailable" and not self._first_word.is_set:
            self._refusal = error  # `start` raises it
        elif not message.get("again"):  # once, not at every try
            logger.error("highlander: %s", error)
        self._disconnected(message["message"], "refused")
        self._first_word.set()

    def _disconnected(self, reason: str, kind: str) -> None:
        self._show(connected=False, reason=reason)
        self.metrics.see({}, ())
        self.metrics.count("database_errors_total", kind=kind)

    def _tell_target(self) -> None:
        try:
            target = self._plan.target()
        except HighlanderError as error:
            self._tell("target", code=error.code, message=error.message, hint=error.hint)
        except Exception as error:  # noqa: BLE001  # the application's engine may raise anything
            told = f"the engine for highlander raised {type(error).__name__}: {error}"
            self._tell("target", code="database_unavailable", message=told, hint="")
        else:
            self._tell("target", url=target.url, connect_args=target.connect_args)

    # -- elections -----------------------------------------------------------------------------------------------------

    def _campaign(self, names: list[str]) -> None:
        if not self._leaving and self._plan.settings.eligible:
            self._campaigning.update(names)
            self._tell("campaign", names=[name for name in names if name not in self._paused])

    def _withdraw(self, names: list[str], reason: str, rest: float | None, patient: bool) -> None:
        if rest is None:
            self._campaigning.difference_update(names)
        self._tell("withdraw", names=names, reason=reason, rest=rest, patient=patient)

    def _elected(self, name: str, token: int) -> None:
        now = time.time()
        logger.info("elected leader of %r, token %s", name, token, extra={"action": "elected"})
        self._stuck = False
        if name in self.works:
            self._held[name] = Held(token, now)
            self.works[name].start(token, now)
        else:
            self._process_terms[name] = token
        self._show(since={**self.snapshot.since, name: now})
        self.announce(lambda: signals.leader_elected.send(sender=name, token=token))
        self._tell_monitors(monitoring.ELECTED, name, token)
        self.metrics.elected(name)

    def _stop(self, name: str, token: int, reason: str, kill_at: float | None, *, lost: bool) -> None:
        self._ends[name] = (reason, lost)
        held = self._held.get(name)
        if held is None or held.token != token:
            return  # the keeper's to stop
        held.stopping = True
        held.reason = reason
        self.works[name].stop(reason, kill_at, hung=self._hung)
        if self.works[name].is_over(boot_time()):
            self._over(name)

    def _over(self, name: str) -> None:
        held = self._held.pop(name)
        if self._channel is None:
            self._unmarked.append((name, held.token, held.reason))
            self._told_end(name, held.token, held.reason)
        else:
            self._reported[name] = (held.token, held.reason)
            self._tell("work_stopped", name=name, token=held.token, reason="")

    def _ended(self, name: str, token: int, reason: str) -> None:
        self._reported.pop(name, None)
        self._process_terms.pop(name, None)
        self._told_end(name, token, reason)

    def _told_end(self, name: str, token: int, reason: str) -> None:
        why, lost = self._ends.pop(name, (reason, False))
        self.metrics.ended(name, why, lost=lost)
        self._show(
            pids={key: pid for key, pid in self.snapshot.pids.items() if key != name},
            since={key: since for key, since in self.snapshot.since.items() if key != name},
        )
        if lost:
            logger.warning("lost %r, token %s: %s", name, token, why, extra={"action": "lost"})
            self.announce(lambda: signals.leadership_lost.send(sender=name, token=token, reason=why))
            self._tell_monitors(monitoring.LOST, name, token, reason=why)
        else:
            logger.info("stepped down from %r, token %s: %s", name, token, why, extra={"action": "stepped_down"})
            self.announce(lambda: signals.leader_stepped_down.send(sender=name, token=token, reason=why))
            self._tell_monitors(monitoring.STEPPED_DOWN, name, token, reason=why)

    def _tell_monitors(self, type_: str, name: str, token: int | None, **more: object) -> None:
        if self.monitors is not None:
            self.monitors.tell(type_, singleton=name, token=token, **more)

    def _look_whether_released(self) -> None:
        busy = self._held or self._process_terms or self._reported or set(self.snapshot.phases.values()) - {"standby"}
        if self._leaving and (self._channel is None or not busy):
            self._released.set()


def _environment() -> dict[str, str]:
    """The keeper's: it is never part of a task, even if one runs in this process (a solo pool) as it is started."""
    ours = {name: value for name, value in os.environ.items() if name != marks.VARIABLE}
    return ours | {"PYTHONPATH": _python_path()}


def _python_path() -> str:
    """Where the keeper finds this package, whatever put it on our own path."""
    root = str(Path(__file__).resolve().parents[2])
    rest = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join([root, rest]) if rest else root
