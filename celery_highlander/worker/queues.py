"""Singleton queues: who consumes them, which tasks may start, and how the running ones come to an end."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from billiard.exceptions import WorkerLostError
from celery.worker import state

from celery_highlander.clock import boot_time
from celery_highlander.worker.fetching import fetcher_for
from celery_highlander.worker.rescue import rescue_unacknowledged

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery import Celery
    from celery.worker import WorkController
    from celery.worker.consumer import Consumer
    from celery.worker.request import Request

    from celery_highlander.keeper.cell import LeaseCell
    from celery_highlander.worker.fetching import Fetcher
    from celery_highlander.worker.leadership import TermInfo
    from celery_highlander.worker.pools import TaskStopper

logger = logging.getLogger("celery_highlander")

HEADER = "highlander"
"""The key in a request under which a pool child finds the term of its task."""

KILL_AHEAD = 0.4
"""Seconds before the keeper kills the whole worker that single tasks are killed. Celery collects garbage before it
replaces a child, and holds the GIL for it: meanwhile this worker cannot say that its task is dead."""

RESCUE_INTERVAL = 5.0
"""Seconds between two looks for messages that an earlier leader left unacknowledged as it went."""

ACK_GRACE = 0.5
"""Seconds that a finished task's acknowledgement may take; until then its message might be given to the next leader."""

_CHILD_DIED = (WorkerLostError, SystemExit, KeyboardInterrupt)  # as a request is told of it


class QueueWork:
    """The work of one singleton queue in this worker: the gate, and the requests that have passed it."""

    def __init__(self, name: str, stopper: TaskStopper, cell: LeaseCell, consumers: Consumers) -> None:
        self.name = name
        self.token: int | None = None
        self.elected_at = 0.0
        self._stopper = stopper
        self._cell = cell
        self._consumers = consumers
        self._running: dict[int, Request] = {}
        self._killed: dict[int, Request] = {}
        self._finished_at: dict[int, float] = {}
        self._kill_at: float | None = None
        self._rescue_at = 0.0

    # -- link's thread -------------------------------------------------------------------------------------------------

    def start(self, token: int, elected_at: float) -> None:
        """Open the gate, and have the queue consumed."""
        self._kill_at = None
        self.elected_at = elected_at
        self._rescue_at = boot_time() + 1.0
        self.token = token
        self._consumers.reconcile_soon()

    def stop(self, reason: str, kill_at: float | None) -> None:
        """Close the gate, have the queue cancelled and what was fetched from it returned."""
        self.token = None
        self._kill_at = kill_at
        self._consumers.deselect(self.name)
        self._consumers.reconcile_soon()

    def tend(self, now: float) -> None:
        """Called now and then while the work may act: look for messages that nobody holds."""
        if now >= self._rescue_at:
            self._rescue_at = now + RESCUE_INTERVAL
            self._consumers.soon(lambda: self._consumers.rescue(self))

    def is_over(self, now: float) -> bool:
        """Kill the tasks that are overdue; return whether none is left."""
        overdue = self._kill_at is not None and now >= self._kill_at - KILL_AHEAD
        for key, request in list(self._running.items()):
            if self._is_finished(key, request, now):
                self._forget(key)
            elif overdue and self._stopper.kill(request) and key not in self._killed:
                logger.warning("killed task %s of %r: it did not stop in time", request.id, self.name)
                self._killed[key] = request
                self._consumers.soon(lambda request=request: self._requeue(request))
        return not self._running

    def _is_finished(self, key: int, request: Request, now: float) -> bool:
        if key in self._killed:
            return self._stopper.is_dead(request)
        if request in state.reserved_requests:
            return False
        settled = request.acknowledged or not request.task.acks_late
        return settled or now - self._finished_at.setdefault(key, now) > ACK_GRACE

    def _forget(self, key: int) -> None:
        self._running.pop(key, None)
        self._finished_at.pop(key, None)

    # -- consumer's thread ---------------------------------------------------------------------------------------------

    @property
    def is_wanted(self) -> bool:
        """Whether this worker should consume the queue."""
        return self.token is not None and not self._consumers.closing

    @property
    def is_open(self) -> bool:
        """Whether a task may start at this instant."""
        return self.is_wanted and boot_time() < self._cell.deadline

    def let_through(self, request: Request, term: TermInfo) -> None:
        """Note a request that goes to the pool, and tell its process of the term."""
        now = boot_time()
        for key in [key for key, other in self._running.items() if self._is_finished(key, other, now)]:
            self._forget(key)
        self._running[id(request)] = request
        request._request_dict[HEADER] = {field: getattr(term, field) for field in term.__dataclass_fields__}
        failed = request.on_failure

        def on_failure(exc_info: Any, **options: Any) -> object:
            if self._killed.pop(id(request), None) is None:
                if isinstance(getattr(exc_info.exception, "exc", exc_info.exception), _CHILD_DIED):
                    self._stopper.clean_up(request)
                return failed(exc_info, **options)
            self._requeue(request)  # not a failure of the task: it was killed, and runs again
            return None

        request.on_failure = on_failure

    def _requeue(self, request: Request) -> None:
        """Give the message of a killed task back; one that was acknowledged early is lost, and says so."""
        state.task_ready(request)
        if request.acknowledged:
            return
        if request.task.acks_late:
            request.reject(requeue=True)

    def give_back(self, requests: Iterable[Request], consumer: Consumer) -> None:
        """Return messages to the broker whose tasks have not been handed to the pool."""
        for request in requests:
            if id(request) in self._running:
                continue
            entry = getattr(request, "_eta_timer_entry", None)
            if entry is not None and request in state.scheduled_requests:
                entry.cancel()
                consumer.qos.decrement_eventually()
            request._already_revoked = True  # should a rate limit's bucket hand it over later
            state.task_ready(request)
            request.reject(requeue=True)


class Consumers:
    """The consumer side of all singleton queues: brings what is consumed in line with what may be."""

    def __init__(self, app: Celery, worker: WorkController) -> None:
        self._app = app
        self._worker = worker
        self._consumer: Consumer | None = None
        self.works: dict[str, QueueWork] = {}
        self.closing = False  # the worker is on its way out: nothing may start any more
        self._routes: dict[tuple[str, str], str] = {}
        self._tags: dict[str, str] = {}
        self._fetcher: Fetcher | None = None

    def declare(self, names: Iterable[str]) -> None:
        """Make each queue known to the app, as one that is not consumed."""
        queues = self._app.amqp.queues
        for name in names:
            if name not in queues:
                queues.add(queues.new_missing(name))
            queue = queues[name]
            self._routes["", name] = name
            route = (queue.exchange.name, queue.routing_key)
            if not any(
                (other.exchange.name, other.routing_key) == route for other in queues.values() if other != queue
            ):
                self._routes[route] = name  # else a message with it may as well be another queue's
            self.deselect(name)

    def deselect(self, name: str) -> None:
        """Take the queue from those that a (re)connecting consumer begins with; safe on any thread."""
        self._app.amqp.queues.deselect([name])

    def work_of(self, request: Request) -> QueueWork | None:
        """Return the singleton queue that a request was consumed from: by consumer tag on AMQP, else by its route."""
        info = request.delivery_info or {}
        name = self._tags.get(info.get("consumer_tag", ""))
        if name is None:
            name = self._routes.get((info.get("exchange") or "", info.get("routing_key") or ""))
        return self.works.get(name) if name is not None else None

    def connected(self, consumer: Consumer) -> None:
        """Take over a new connection: nothing is consumed over it yet.

        Nor now: a message that arrives before the consumer's loop runs would find no callback, and end the worker.
        """
        self._consumer = consumer
        self._tags.clear()
        self._fetcher = fetcher_for(consumer, list(self.works), lambda name: self.works[name].is_open)
        self.reconcile_soon()

    def disconnected(self) -> None:
        """Forget the connection."""
        self._consumer = None
        if self._fetcher is not None:
            self._fetcher.close()

    @property
    def is_connected(self) -> bool:
        """Whether there is a broker connection."""
        return self._consumer is not None

    def soon(self, callback: Any) -> None:
        """Have `callback` run on the consumer's thread; where there is no connection it does not run."""
        consumer = self._consumer
        if consumer is not None:
            consumer.call_soon(_guarded, callback)

    def reconcile_soon(self) -> None:
        """Have `reconcile` run on the consumer's thread."""
        self.soon(self.reconcile)

    def reconcile(self) -> None:
        """Consume exactly the queues whose gate is open; give back what was fetched from the others. Idempotent."""
        consumer = self._consumer
        if consumer is None or consumer.task_consumer is None:
            return
        for name, work in self.works.items():
            consuming = consumer.task_consumer.consuming_from(name)
            if work.is_wanted:
                if not consuming:
                    consumer.add_task_queue(name)
                    self._tags[consumer.task_consumer._active_tags.get(name, "")] = name
                    self.rescue(work)
                continue
            self.deselect(name)
            if consuming:
                logger.info("no longer consuming from %r", name)
                consumer.task_consumer.cancel_by_queue(name)
            fetched = {*state.reserved_requests, *getattr(state, "scheduled_requests", ())}
            work.give_back([request for request in fetched if self.work_of(request) is work], consumer)

    def rescue(self, work: QueueWork) -> None:
        """Give back what an earlier leader of the queue left unacknowledged."""
        consumer = self._consumer
        if work.is_open and consumer is not None and consumer.task_consumer is not None:
            rescue_unacknowledged(consumer, lambda route: self._routes.get(route) == work.name)

    def install_gate(self, term_of: Any) -> None:
        """Have every request of a singleton queue pass the gate: there is no other way to the pool."""
        worker = self._worker
        inner = worker._process_task

        def gated(request: Request) -> object:
            work = self.work_of(request)
            if work is None:
                return inner(request)
            if not work.is_open:
                if self._consumer is not None:
                    work.give_back([request], self._consumer)
                _release_slot(worker)
                return None
            work.let_through(request, term_of(work))
            return inner(request)

        if worker.process_task == inner:
            worker.process_task = gated
        worker._process_task = gated


def _release_slot(worker: WorkController) -> None:
    release = getattr(worker, "_quick_release", None)
    if release is not None:
        release()


def _guarded(callback: Any) -> None:
    """Run a callback: what it raises must not end the worker's loop."""
    try:
        callback()
    except Exception:
        logger.exception("highlander: a callback on the consumer's thread failed")
