"""The bootsteps: `HighlanderStep` frames the worker's life, `QueueStep` follows the broker connection."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import bootsteps, signals
from celery.worker import state

from celery_highlander.config import BEAT
from celery_highlander.errors import ConfigurationError, HighlanderError
from celery_highlander.keeper.children import ADDRESS_VARIABLE
from celery_highlander.tasks.client import spare_this_process
from celery_highlander.tasks.events import announce_skips
from celery_highlander.tasks.singleton import singleton_tasks
from celery_highlander.tasks.sweep import Sweeper
from celery_highlander.worker import banner, children, pools
from celery_highlander.worker.broker import BrokerWatch, expect_signs, is_in_the_way
from celery_highlander.worker.consumers import Consumers
from celery_highlander.worker.deadman import DeadMansSwitch
from celery_highlander.worker.highlander import Highlander, path_of_app
from celery_highlander.worker.http import Endpoint
from celery_highlander.worker.inside import TasksInside
from celery_highlander.worker.leadership import TermInfo
from celery_highlander.worker.link import KeeperLink, LinkPlan
from celery_highlander.worker.monitoring import Monitors
from celery_highlander.worker.once import RunOnce
from celery_highlander.worker.progress import LoopWatch
from celery_highlander.worker.queues import QueueWork
from celery_highlander.worker.schedulers import find_scheduler
from celery_highlander.worker.voice import Voice

if TYPE_CHECKING:
    from celery.worker import WorkController
    from celery.worker.consumer import Consumer

logger = logging.getLogger("celery_highlander")

EX_CONFIG = 78  # sysexits.h: something was found in an unconfigured or misconfigured state

_CHILDREN = "celery_highlander.worker.children"

FIRST_WORD_TIMEOUT = 8.0
"""Seconds that a starting worker waits for its keeper's first word from the database."""


def refuse(error: HighlanderError) -> SystemExit:
    """Say why the worker cannot start, without a traceback; return what ends it with exit code 78."""
    lines = "\n".join(line for line in (error.message, error.hint) if line)
    logger.critical("celery-highlander cannot work: %s", lines, extra={"action": "refuse"})
    return SystemExit(EX_CONFIG)


class HighlanderStep(bootsteps.StartStopStep):
    """Started before the pool, and stopped after it: the lock outlives every task that it guards."""

    label = "Highlander"
    requires = ("celery.worker.components:Timer", "celery.worker.components:Pool")

    _voice: Voice | None = None
    _endpoint: Endpoint | None = None
    _sweeper = Sweeper()

    def __init__(
        self,
        w: WorkController,
        highlander_eligible: bool | None = None,
        highlander_priority: int | None = None,
        highlander_http_address: str | None = None,
        **kwargs: Any,
    ) -> None:
        w.highlander = self
        os.environ.pop(ADDRESS_VARIABLE, None)  # of the worker that started this one, should one have done so
        self._eligible = highlander_eligible
        self._priority = highlander_priority
        self._http_address = highlander_http_address
        super().__init__(w, **kwargs)

    def include(self, w: WorkController) -> bool:
        """Join the worker's steps at the front: started first, stopped last, when the pool is drained."""
        included, link = self._should_include(w)
        if included:
            self.obj = link
            w.steps.insert(0, self)
        return bool(included)

    def create(self, w: WorkController) -> KeeperLink:
        """Read the settings and make everything ready; nothing is connected yet."""
        try:
            return self._create(w)
        except HighlanderError as error:
            raise refuse(error) from None

    def _create(self, w: WorkController) -> KeeperLink:
        highlander = Highlander.of(w.app)
        if highlander is None:
            raise ConfigurationError("celery-highlander is not installed in this app")
        settings = highlander.settings()
        overrides = {"eligible": self._eligible, "priority": self._priority, "http_address": self._http_address}
        for name, value in overrides.items():
            if value is not None:
                object.__setattr__(settings, name, value)  # not shared yet
        self.settings = settings
        _refuse_mistakes(w)
        if settings.on_stuck != "kill":
            spare_this_process()
        queues = highlander.queues(settings)
        processes = highlander.processes(settings)
        _refuse_static_queues(w, queues)
        if BEAT in processes and settings.beat_scheduler:
            find_scheduler(settings.beat_scheduler)  # in the process of its own it would fail again and again
        self.consumers = Consumers(w.app, w)
        self.consumers.declare(queues)
        plan = LinkPlan(
            settings=settings,
            keys=highlander.keys(settings),
            worker=w.hostname,
            processes=processes,
            load=_load(w, settings, processes),
            target=lambda: highlander.target(settings),
            target_changes=highlander.has_changing_target,
        )
        expect_signs(w, settings.broker_timeout)
        self.broker = BrokerWatch(settings.broker_timeout, pool_in_the_way=is_in_the_way(w))
        link = KeeperLink(plan, self.broker)
        # A pool child that is not forked but spawned imports what is listed here, and nothing else of ours.
        w.app.conf.include = (*w.app.conf.include, _CHILDREN)
        self._prepare_queues(w, link, queues, highlander.concurrency(settings))
        link.monitors = Monitors(self.consumers)
        banner.show(w, highlander, settings, queues, processes)
        self.link = highlander.link = link
        self.queues, self.processes = queues, processes
        return link

    def _prepare_queues(
        self, w: WorkController, link: KeeperLink, queues: tuple[str, ...], concurrency: dict[str, int]
    ) -> None:
        settings = self.settings
        tasks = TasksInside(link.cell)
        stopper = pools.stopper_for(w, tasks, self.consumers.soon, kills_worker=settings.on_stuck == "kill")
        children.run_inside(tasks if stopper.inside else None)
        if stopper.inside and settings.on_stuck == "kill":
            link.switch = DeadMansSwitch()
        for name in queues:
            term = TermInfo(name, 0, 0.0, settings.namespace, settings.schema, settings.kill_margin)
            work = QueueWork(name, concurrency.get(name), stopper, link.cell, self.consumers, term)
            self.consumers.works[name] = work
        link.works.update(self.consumers.works)
        if settings.beat_once:
            self.consumers.once = link.once = RunOnce(self.consumers, link.ask_for_runs, w)
        self.consumers.install_gate()
        pool = pools.pool_name(w)
        link.loop = LoopWatch(
            self.consumers.soon,
            # A solo pool runs its tasks in the loop itself, for as long as they take.
            lambda: self.consumers.is_running and not (pool == "solo" and state.active_requests),
            settings.heartbeat_interval,
            settings.progress_timeout,
        )
        if queues and settings.eligible:
            logger.log(
                logging.WARNING if stopper.inside else logging.INFO,
                "highlander: when a task of a singleton queue does not end within %g s (highlander_drain_timeout) "
                "after the leadership is lost, in the pool %r %s",
                settings.drain_timeout,
                pool,
                stopper.announcement,
            )

    def start(self, w: WorkController) -> None:
        """Start the keeper, and refuse to go on where the database cannot carry a lock."""
        if pools.pool_name(w) in ("gevent", "eventlet"):
            self._voice = Voice(logger)
            self.link.announce = self._voice.announce
        try:
            self.link.start(FIRST_WORD_TIMEOUT)
        except HighlanderError as error:
            raise refuse(error) from None
        if self.settings.http_address:
            self._endpoint = Endpoint(self.settings.http_address, self.link)
            self._endpoint.start()
        self.consumers.on_cancelled = lambda: self._shutting_down("Cold")
        signals.worker_shutting_down.connect(self._shutting_down, sender=w.hostname)
        self.link.campaign(sorted(self.processes))
        announce_skips(w.app)
        if any(task.waits_alone() for task in singleton_tasks(w.app)):
            self._sweeper.start(w.app)

    def _shutting_down(self, how: str = "", **kwargs: Any) -> None:
        self.consumers.closing = True
        # In the signal handler already: nobody has to wait for the loop.
        self.link.leave("worker shutting down", patient=how != "Cold")

    def close(self, w: WorkController) -> None:
        """Hand over before anything else is waited for."""
        self.consumers.closing = True
        self.link.leave("worker shutting down")
        self.consumers.reconcile()
        if self.consumers.once is not None:
            self.consumers.once.give_back()
        self.consumers.run_out()
        self.consumers.loop_ended()

    def stop(self, w: WorkController) -> None:
        """The pool is drained: wait until everything is released."""
        self._sweeper.stop()
        settings = self.settings
        if not self.link.finish(settings.drain_timeout + settings.lease_duration):
            logger.warning("highlander: not everything could be released; other nodes wait for the lease")
        if self._endpoint is not None:
            self._endpoint.close()
        if self._voice is not None:
            self._voice.flush()

    def terminate(self, w: WorkController) -> None:
        """Cold shutdown: the children are dead; the keeper cleans up as soon as this process is gone, too."""
        self.link.leave("worker terminated")

    def info(self, w: WorkController) -> dict[str, Any]:
        """What `inspect stats` and `inspect highlander` show."""
        return {"highlander": describe(self)}


def describe(step: HighlanderStep) -> dict[str, Any]:
    """Return the singletons of this worker as plain values; reads memory only."""
    shown = step.link.snapshot
    names = [*step.queues, *step.processes]
    return {
        "node": step.link.node,
        "connected": shown.connected,
        "reason": shown.reason,
        "keeper_pid": step.link.keeper_pid,
        "singletons": {
            name: {
                "kind": "queue" if name in step.queues else "process",
                "role": "leader" if shown.phases.get(name) in ("leading", "stopping") else "standby",
                "phase": shown.phases.get(name, "standby"),
                "token": shown.tokens.get(name),
                "since": shown.since.get(name),
                "paused": name in step.link.paused,
                "pid": shown.pids.get(name, os.getpid() if name in step.queues else None),
            }
            for name in names
        },
    }


class QueueStep(bootsteps.StartStopStep):
    """Restarted with each broker connection: brings its consumer in line before it consumes anything."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def include_if(self, c: Consumer) -> bool:
        """Only beside `HighlanderStep`."""
        return getattr(c.controller, "highlander", None) is not None

    def start(self, c: Consumer) -> None:
        """Take the new connection over."""
        step: HighlanderStep = c.controller.highlander
        step.consumers.connected(c)
        if c.hub is None:
            _drain_often(c, step.consumers)
        step.broker.connected(c)  # first, or the link's thread withdraws again what campaigns here
        step.link.campaign(sorted(step.queues))

    def stop(self, c: Consumer) -> None:
        """The connection is gone, or about to be closed."""
        step: HighlanderStep = c.controller.highlander
        step.consumers.disconnected()
        step.broker.disconnected()


def _refuse_mistakes(w: WorkController) -> None:
    """Refuse singleton tasks whose options cannot work.

    Raises:
        ConfigurationError: with every one of them.
    """
    mistakes = [mistake.message for task in singleton_tasks(w.app) if (mistake := task.mistake()) is not None]
    if mistakes:
        raise ConfigurationError.of(mistakes)


DRAIN_TIMEOUT = 0.1
"""Seconds that a consumer without an event loop waits for a message before it looks at anything else; 2 s by itself."""


def _drain_often(c: Consumer, consumers: Consumers) -> None:
    drain = c.connection.drain_events

    def drain_events(timeout: float | None = None, **more: Any) -> object:
        consumers.look()
        return drain(timeout=min(timeout or DRAIN_TIMEOUT, DRAIN_TIMEOUT), **more)

    c.connection.drain_events = drain_events


def _refuse_static_queues(w: WorkController, queues: tuple[str, ...]) -> None:
    selected = getattr(w.app.amqp.queues, "_consume_from", None) or {}  # None without -Q; there is no public way
    both = sorted(set(queues) & set(selected))
    if both:
        raise ConfigurationError(
            f"-Q lists {', '.join(map(repr, both))}, which only the leader consumes.",
            "Leave singleton queues out of -Q (or add -X): the leader consumes them by itself.",
        )


def _load(w: WorkController, settings: Any, processes: dict[str, str]) -> dict[str, Any]:
    """What the launcher needs to load the application as this worker did."""
    import sys

    here = str(Path.cwd())
    return {
        "app": path_of_app(w.app),
        "functions": processes,
        # Celery finds an app in the working directory, and takes that off the path again as soon as it is imported.
        "sys_path": sys.path if {"", here} & set(sys.path) else [here, *sys.path],
        "namespace": settings.namespace,
        "schema": settings.schema,
        "kill_margin": settings.kill_margin,
        "worker": w.hostname,
        "log": {
            "level": w.loglevel,
            "file": w.logfile,
            "redirect": bool(getattr(w, "redirect_stdouts", False)),
            "redirect_level": str(getattr(w, "redirect_stdouts_level", "WARNING")),
        },
    }
