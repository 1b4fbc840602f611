"""The consumer side of all singleton queues: brings what is consumed in line with what may be."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from celery.worker import state

from celery_highlander.worker.channels import OwnChannel, needs_own_channel
from celery_highlander.worker.fetching import fetcher_for
from celery_highlander.worker.queues import Admission
from celery_highlander.worker.rescue import leave_to_the_next_leader, rescue_unacknowledged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from celery import Celery
    from celery.worker import WorkController
    from celery.worker.consumer import Consumer
    from celery.worker.request import Request

    from celery_highlander.worker.fetching import Fetcher
    from celery_highlander.worker.once import RunOnce
    from celery_highlander.worker.queues import QueueWork

logger = logging.getLogger("celery_highlander")


class Consumers:
    """What this worker consumes of its singleton queues, over one broker connection after the other."""

    def __init__(self, app: Celery, worker: WorkController) -> None:
        self._app = app
        self._worker = worker
        self._consumer: Consumer | None = None
        self.works: dict[str, QueueWork] = {}
        self.once: RunOnce | None = None
        self.closing = False  # the worker is on its way out: nothing may start any more
        self.connection_number = 0
        self._running_out = False
        self.on_cancelled: Callable[[], None] = lambda: None
        """Called when Celery cancels a running task: a cold shutdown has begun, and says so only when it is over."""
        self._routes: dict[tuple[str, str], str] = {}
        self._tags: dict[str, str] = {}
        self._channels: dict[str, OwnChannel] = {}
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

    # -- the connection ------------------------------------------------------------------------------------------------

    def connected(self, consumer: Consumer) -> None:
        """Take over a new connection: nothing is consumed over it yet.

        Nor now: a message that arrives before the consumer's loop runs would find no callback, and end the worker.
        """
        self._consumer = consumer
        self.connection_number += 1
        self._tags.clear()
        self._channels.clear()
        self._fetcher = fetcher_for(consumer, self.works)
        leave_to_the_next_leader(consumer, lambda route: self._routes.get(route) in self.works)
        self.reconcile_soon()

    def disconnected(self) -> None:
        """Forget the connection."""
        self._consumer = None
        if self._fetcher is not None:
            self._fetcher.close()
            self._fetcher = None
        if self.once is not None:
            self.once.forget()
        for work in self.works.values():
            work.is_consuming = False
            if not self.closing:
                work.connection_lost()

    @property
    def consumer(self) -> Consumer | None:
        """The worker's consumer; None while there is no connection to the broker."""
        return self._consumer

    @property
    def is_running(self) -> bool:
        """Whether the consumer's loop runs, or is about to."""
        return self._consumer is not None and not self.closing

    def look(self) -> None:
        """Fetch, where the worker has no event loop with timers for that. On the consumer's thread."""
        if self._fetcher is not None:
            self._fetcher.look()

    def run_out(self) -> None:
        """In a warm shutdown, keep the event loop going until the last task of a singleton queue is acknowledged.

        Celery stops its loop first, and then waits for the pool in a way that hears of finished tasks late, or never.
        No other task begins meanwhile: its message goes back when the connection is closed, as ever.
        """
        consumer = self._consumer
        if consumer is None or consumer.hub is None or not _is_set(state.should_stop):
            return
        self._running_out = True
        try:
            consumer.task_consumer.cancel()
            loop = consumer.hub.create_loop()
            while not _is_set(state.should_terminate) and any(work.is_busy for work in self.works.values()):
                if not consumer.hub.readers:
                    return  # an earlier Celery has taken the loop to pieces
                next(loop)
        except Exception as error:  # noqa: BLE001  # the rest is left to Celery's own shutdown
            logger.warning("highlander: the event loop could not go on to the last task's end: %r", error)

    def loop_ended(self) -> None:
        """The worker stops, and its event loop runs no more: from now on do at once what was ordered for later.

        Celery itself would only send the acknowledgements of the last tasks when the pool is gone.
        """
        consumer = self._consumer
        if consumer is None or consumer.hub is None or isinstance(consumer.hub, _AtOnce):
            return
        hub, consumer.hub = consumer.hub, _AtOnce()
        for ordered in hub._pop_ready() if hasattr(hub, "_pop_ready") else hub._ready:
            _guarded(ordered)

    def soon(self, callback: Callable[[], object]) -> None:
        """Have `callback` run on the consumer's thread; where there is no connection it does not run."""
        consumer = self._consumer
        if consumer is not None:
            consumer.call_soon(_guarded, callback)

    def when_acknowledged(self, callback: Callable[[], object]) -> None:
        """Have `callback` run after the acknowledgements that have been ordered so far are sent."""
        if self._consumer is None:
            callback()
        else:
            self.soon(lambda: self.soon(callback))  # what is ordered at one time is done in no certain order

    # -- consumer's thread ---------------------------------------------------------------------------------------------

    def reconcile_soon(self) -> None:
        """Have `reconcile` run on the consumer's thread."""
        self.soon(self.reconcile)

    def reconcile(self) -> None:
        """Consume exactly the queues whose gate is open; give back what was fetched from the others. Idempotent."""
        consumer = self._consumer
        if consumer is None or consumer.task_consumer is None:
            return
        for name, work in self.works.items():
            if work.is_wanted:
                if not self._is_consuming(name, consumer):
                    work.is_consuming = True
                    self._consume(work, consumer)
                    self.rescue(work)
                continue
            self.deselect(name)
            if self._is_consuming(name, consumer):
                logger.info("no longer consuming from %r", name)
                self._cancel(name, consumer)
            work.is_consuming = False
            fetched = {*state.reserved_requests, *getattr(state, "scheduled_requests", ())}
            ours = [request for request in fetched if self.work_of(request) is work]
            work.give_back([*ours, *self._take_limited(work, consumer)], consumer)

    def _take_limited(self, work: QueueWork, consumer: Consumer) -> list[Request]:
        """Take the requests of a queue that wait for the sake of their tasks' rate limits."""
        taken = []
        for bucket in consumer.task_buckets.values():
            for item in list(bucket.contents) if bucket else ():
                if self.work_of(item[0]) is work:
                    bucket.contents.remove(item)
                    taken.append(item[0])
        return taken

    def _is_consuming(self, name: str, consumer: Consumer) -> bool:
        own = self._channels.get(name)
        return own.is_consuming if own is not None else bool(consumer.task_consumer.consuming_from(name))

    def _consume(self, work: QueueWork, consumer: Consumer) -> None:
        name = work.name
        if work.concurrency is not None and needs_own_channel(consumer):
            if name not in self._channels:
                self._channels[name] = OwnChannel(consumer, self._app.amqp.queues[name], work, self.work_of)
            self._channels[name].consume()
            self._tags[self._channels[name].tag] = name
            logger.info("consuming from %r, %d at a time", name, work.concurrency)
            return
        consumer.add_task_queue(name)
        self._tags[consumer.task_consumer._active_tags.get(name, "")] = name

    def _cancel(self, name: str, consumer: Consumer) -> None:
        own = self._channels.get(name)
        if own is not None:
            own.cancel()
        else:
            consumer.task_consumer.cancel_by_queue(name)

    def rescue(self, work: QueueWork) -> None:
        """Give back what an earlier leader of the queue left unacknowledged."""
        consumer = self._consumer
        if work.is_open and consumer is not None and consumer.task_consumer is not None:
            rescue_unacknowledged(consumer, lambda route: self._routes.get(route) == work.name)

    def let_waiting_go(self, work: QueueWork) -> None:
        """Hand on the requests of a queue that wait no longer. On the consumer's thread."""
        while (found := work.next_waiting()) is not None:
            request, admission = found
            if admission is Admission.DONE:
                _finish(request)
            else:
                self._worker.process_task(request)

    def count_asking(self, work: QueueWork) -> int:
        """Return how many requests of a queue wait for the ledger's word."""
        waiting = self.once.waiting() if self.once is not None else ()
        return sum(self.work_of(request) is work for request in waiting)

    def install_gate(self) -> None:
        """Have every request pass the gate: there is no other way to the pool, not for those of a time or rate."""
        worker = self._worker
        inner = worker._process_task

        def gated(request: Request) -> object:
            work = self.work_of(request)
            if work is None and self._running_out:
                _release_slot(worker)
                return None
            once = self.once if work is None or work.is_open else None
            if once is not None and not once.lets_pass(request):
                _release_slot(worker)
                return None
            if work is None:
                return inner(request)
            match work.admit(request):
                case Admission.GO:
                    return inner(request)
                case Admission.RETURN:
                    if self._consumer is not None:
                        work.give_back([request], self._consumer)
                case Admission.DONE:
                    _finish(request)
                case Admission.WAIT:
                    pass
            _release_slot(worker)
            return None

        if worker.process_task == inner:
            worker.process_task = gated
        worker._process_task = gated


class _AtOnce:
    """Stands in for the event loop of a consumer when that has ended; pools of threads call it from several."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Call it now."""
        with self._lock:
            _guarded(callback)


def _is_set(stop: object) -> bool:
    """Whether Celery is to stop: it then says with which exit code, and 0 is one."""
    return stop is not None and stop is not False


def _finish(request: Request) -> None:
    """Acknowledge the second delivery of a message whose task ran here to its end."""
    logger.info("task %s was delivered again, and has run here already", request.id)
    state.task_ready(request)
    request.acknowledge()


def _release_slot(worker: WorkController) -> None:
    release = getattr(worker, "_quick_release", None)
    if release is not None:
        release()


def _guarded(callback: Callable[[], object]) -> None:
    """Run a callback: what it raises must not end the worker's loop."""
    try:
        callback()
    except Exception:
        logger.exception("highlander: a callback on the consumer's thread failed")
