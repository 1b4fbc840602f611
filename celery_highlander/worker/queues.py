"""Singleton queues: which of their tasks may start, and how the running ones come to an end."""

from __future__ import annotations

import enum
import logging
from collections import OrderedDict, deque
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from celery.worker import state

from celery_highlander.clock import boot_time
from celery_highlander.worker import native
from celery_highlander.worker.runs import Run, put_back

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery.worker.consumer import Consumer
    from celery.worker.request import Request

    from celery_highlander.keeper.cell import LeaseCell
    from celery_highlander.worker.consumers import Consumers
    from celery_highlander.worker.leadership import TermInfo
    from celery_highlander.worker.pools import TaskStopper

logger = logging.getLogger("celery_highlander")

KILL_AHEAD = 0.4
"""Seconds before the keeper kills the whole worker that single tasks are killed. Celery collects garbage before it
replaces a child, and holds the GIL for it: meanwhile this worker cannot say that its task is dead."""

RESCUE_INTERVAL = 5.0
"""Seconds between two looks for messages that an earlier leader left unacknowledged as it went."""

CANCEL_GRACE = 0.5
"""Seconds that the consumer's thread may take to cancel the queue's consumer: until then the broker may go on to
deliver messages here. Nothing of them is begun, so it is no matter of safety."""

_REMEMBERED = 1000  # finished runs whose acknowledgement was lost with their connection


class Admission(enum.Enum):
    """What becomes of a request at the gate."""

    GO = enum.auto()
    WAIT = enum.auto()
    RETURN = enum.auto()
    DONE = enum.auto()


class QueueWork:
    """The work of one singleton queue in this worker: the gate, and what has passed it.

    Safe with any number of threads: without an event loop the gate is also called from Celery's timer thread, and
    pools of threads call back from theirs.
    """

    def __init__(
        self,
        name: str,
        concurrency: int | None,
        stopper: TaskStopper,
        cell: LeaseCell,
        consumers: Consumers,
        term: TermInfo,
    ) -> None:
        self.name = name
        self.concurrency = concurrency
        self.token: int | None = None
        self.elected_at = 0.0
        self.is_consuming = False
        """Whether the broker may deliver messages of the queue to this worker; kept by `Consumers`."""
        self._term = term
        self._stopper = stopper
        self._cell = cell
        self._consumers = consumers
        self._lock = native.lock()
        self._runs: dict[int, Run] = {}
        self._waiting: deque[Request] = deque()
        self._finished: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._kill_at: float | None = None
        self._stopped_at = 0.0
        self._must_cancel = False
        self._rescue_at = 0.0

    # -- link's thread -------------------------------------------------------------------------------------------------

    def start(self, token: int, elected_at: float) -> None:
        """Open the gate, and have the queue consumed."""
        self._kill_at = None
        self._must_cancel = False
        self.elected_at = elected_at
        self._rescue_at = boot_time() + 1.0
        self.token = token
        self._consumers.reconcile_soon()

    def stop(self, reason: str, kill_at: float | None, *, hung: bool = False) -> None:
        """Close the gate, have the queue cancelled and what was fetched from it returned.

        Args:
            reason: why, for the log.
            kill_at: when what is left is killed (boot-time clock); None: never.
            hung: the worker's main loop hangs: as long as it does not cancel the queue, the work is not over.
        """
        self.token = None
        self._kill_at = kill_at
        self._stopped_at = boot_time()
        self._must_cancel = self._must_cancel or hung
        self._consumers.deselect(self.name)
        self._consumers.reconcile_soon()

    def tend(self, now: float) -> None:
        """Called now and then while the work may act: look for messages that nobody holds."""
        if now >= self._rescue_at:
            self._rescue_at = now + RESCUE_INTERVAL
            self._consumers.soon(lambda: self._consumers.rescue(self))

    def is_over(self, now: float) -> bool:
        """Stop the tasks that are overdue; return whether nothing is left."""
        overdue = self._kill_at is not None and now >= self._kill_at - KILL_AHEAD
        for run in list(self._runs.values()):
            if run.is_over(now) or (run.killed and self._stopper.is_dead(run)):
                self._forget(run)
            elif overdue:
                self._stopper.stop(run)
            elif self._stopper.inside and not run.begun and now - self._stopped_at > CANCEL_GRACE:
                run.orphaned = True  # a full pool keeps it, maybe for long; it will not begin, and goes back then
        cancelled = not self.is_consuming or (now - self._stopped_at > CANCEL_GRACE and not self._must_cancel)
        return not self._runs and cancelled

    # -- the gate ------------------------------------------------------------------------------------------------------

    @property
    def is_wanted(self) -> bool:
        """Whether this worker should consume the queue."""
        return self.token is not None and not self._consumers.closing

    @property
    def is_open(self) -> bool:
        """Whether a task may start at this instant."""
        return self.is_wanted and boot_time() < self._cell.deadline

    @property
    def is_busy(self) -> bool:
        """Whether something of the queue still runs here, or is not acknowledged yet."""
        return bool(self._live())

    @property
    def has_room(self) -> bool:
        """Whether another message may be fetched."""
        if self.concurrency is None:
            return True
        return len(self._live()) + len(self._waiting) + self._consumers.count_asking(self) < self.concurrency

    def admit(self, request: Request) -> Admission:
        """Decide what becomes of a request on its way to the pool; `GO` makes it one of the runs."""
        with self._lock:
            run = self._runs.get(id(request))
            if not self.is_open:
                self._runs.pop(id(request), None)
                return Admission.RETURN
            if run is not None:
                return Admission.GO  # it waited, here or for a free pool process
            if self._is_finished(request):
                return Admission.DONE
            if self._must_wait(request, self._waiting):
                self._waiting.append(request)
                return Admission.WAIT
            self._begin(request)
            return Admission.GO

    def _live(self) -> list[Run]:
        now = boot_time()
        for run in list(self._runs.values()):
            if run.is_over(now):
                self._forget(run)
        return list(self._runs.values())

    def _must_wait(self, request: Request, before: Iterable[Request]) -> bool:
        """Whether a request has to wait: for its place in a queue of limited concurrency, or for its own twin.

        After a lost connection the broker delivers again what still runs here.
        """
        live = self._live()
        if self.concurrency is not None and (any(True for _ in before) or len(live) >= self.concurrency):
            return True
        return any(run.request.id == request.id for run in live)

    def _is_finished(self, request: Request) -> bool:
        return self._finished.pop(_attempt(request), 0) is None and _is_redelivered(request)

    def _begin(self, request: Request) -> None:
        token = self.token
        term = asdict(self._term) | {"token": token, "elected_at": self.elected_at}
        connection = self._consumers.connection_number

        def may_begin(run: Run) -> bool:
            if not self._stopper.inside:
                return True
            return self.is_open and self.token == token and not run.orphaned

        def ended(run: Run) -> None:
            is_lost = connection != self._consumers.connection_number  # so the acknowledgement is, too
            if not run.returned and (
                is_lost or any(_attempt(twin) == _attempt(request) for twin in list(self._waiting))
            ):
                self._finished[_attempt(request)] = None
                while len(self._finished) > _REMEMBERED:
                    self._finished.popitem(last=False)
            self._consumers.when_acknowledged(lambda: self._settle(run))

        stopper = self._stopper
        self._runs[id(request)] = Run(
            request,
            term,
            may_begin=may_begin,
            ended=ended,
            refusal=stopper.refusal,
            cancel=self._cancel if stopper.inside else None,
            process_died=stopper.clean_up,
        )

    def _cancel(self, run: Run) -> None:
        self._consumers.on_cancelled()
        self._stopper.stop(run)

    def _settle(self, run: Run) -> None:
        run.settled = True
        self._forget(run)
        self._consumers.let_waiting_go(self)

    def _forget(self, run: Run) -> None:
        self._runs.pop(id(run.request), None)

    # -- consumer's thread ---------------------------------------------------------------------------------------------

    def next_waiting(self) -> tuple[Request, Admission] | None:
        """Take the next request that waits no longer: to be handed on (`GO`), or done already."""
        with self._lock:
            if not self.is_open:
                return None
            for position, request in enumerate(self._waiting):
                if self._must_wait(request, ()):
                    if self.concurrency is not None:
                        return None
                    continue
                del self._waiting[position]
                if self._is_finished(request):
                    return request, Admission.DONE
                self._begin(request)
                return request, Admission.GO
        return None

    def give_back(self, requests: Iterable[Request], consumer: Consumer) -> None:
        """Return messages to the broker whose tasks have not been handed to the pool, the newest one first."""
        with self._lock:
            waiting = list(self._waiting)
            self._waiting.clear()
        order = {id(request): place for place, request in enumerate(waiting)}
        for request in sorted(requests, key=lambda request: order.get(id(request), len(order)), reverse=True):
            run = self._runs.get(id(request))
            if run is not None and (run.begun or not self._stopper.inside):
                continue
            entry = getattr(request, "_eta_timer_entry", None)
            if entry is not None and request in getattr(state, "scheduled_requests", ()):
                consumer.timer.cancel(entry)
                consumer.qos.decrement_eventually()
            request._already_revoked = True  # should a rate limit's bucket or a full pool hand it over later
            if run is not None:
                run.put_back()
                run.end()
            else:
                put_back(request)

    def connection_lost(self) -> None:
        """What has not begun is delivered again by the broker; Celery and the pool drop it."""
        with self._lock:
            self._waiting.clear()
        for run in list(self._runs.values()):
            run.orphaned = not run.begun


def _attempt(request: Request) -> tuple[str, int]:
    """What tells a message delivered twice from a retry, which is a new message with the same id."""
    return request.id, int(request._request_dict.get("retries") or 0)


def _is_redelivered(request: Request) -> bool:
    info: dict[str, Any] = request.delivery_info or {}
    return bool(info.get("redelivered"))
