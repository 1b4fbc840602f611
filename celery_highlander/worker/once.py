"""Each tick of a beat is run once here, whatever number of copies of its message arrive; it knows no database.

Beat may publish the message of a tick twice, each time as another copy. So before such a message goes to the pool, the
keeper is asked (it asks the ledger). Until it answers the message waits, unacknowledged. The copy that is run stays the
one: when it is delivered again, or its task is retried, it is run again, as any other message is.
"""

from __future__ import annotations

import logging
import uuid
import weakref
from typing import TYPE_CHECKING, Any

from celery.worker import state

from celery_highlander.worker import native
from celery_highlander.worker.runs import put_back

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from celery.worker import WorkController
    from celery.worker.request import Request

    from celery_highlander.worker.consumers import Consumers

    Copy = tuple[str, str]
    """A tick and one copy of its message."""

logger = logging.getLogger("celery_highlander")

HEADER = "highlander_tick"
"""The message header in which beat says of which tick this is a copy: `{"id": …, "copy": …, "due_at": …}`."""

MOST_AT_ONCE = 1000
"""Questions in one message to the keeper, at most."""


class RunOnce:
    """What waits in this worker for the keeper's word, which comes on the link's thread.

    Without an event loop the gate is also called from Celery's timer thread.

    Args:
        consumers: the way to the consumer's thread.
        ask: asks the keeper.
        worker: is handed the requests that may go on. They pass the gate again, for they hold no slot of the pool.
    """

    def __init__(self, consumers: Consumers, ask: Callable[[list[Copy]], object], worker: WorkController) -> None:
        self._consumers = consumers
        self._ask = ask
        self._worker = worker
        self._lock = native.lock()
        self._waiting: dict[Copy, list[Request]] = {}
        self._may_run: weakref.WeakSet[Request] = weakref.WeakSet()

    # -- the gate ------------------------------------------------------------------------------------------------------

    def lets_pass(self, request: Request) -> bool:
        """Return whether a request may go on now; one that may not is kept until the keeper has answered."""
        copy = copy_of(request)
        if copy is None:
            return True
        with self._lock:
            if request in self._may_run:
                return True
            self._waiting.setdefault(copy, []).append(request)
        if not self._consumers.closing:  # else it goes back in a moment
            self._ask([copy])
        return False

    def waiting(self) -> list[Request]:
        """Return what waits, in the order in which it came."""
        with self._lock:
            return [request for requests in self._waiting.values() for request in requests if not request.acknowledged]

    # -- link's thread -------------------------------------------------------------------------------------------------

    def ask_again(self) -> None:
        """Ask another keeper what the last one has not answered."""
        with self._lock:
            copies = list(self._waiting)
        for start in range(0, len(copies), MOST_AT_ONCE):
            self._ask(copies[start : start + MOST_AT_ONCE])

    def answered(self, runs: Iterable[tuple[str, str, bool]]) -> None:
        """Take the keeper's word: tick, copy, and whether it may be run."""
        self._consumers.soon(lambda: self._go_on({(tick, copy): may_run for tick, copy, may_run in runs}))

    # -- consumer's thread ---------------------------------------------------------------------------------------------

    def _go_on(self, answers: dict[Copy, bool]) -> None:
        for copy, may_run in answers.items():
            with self._lock:
                requests = [request for request in self._waiting.pop(copy, ()) if not request.acknowledged]
                if may_run:
                    self._may_run.update(requests)
            for request in requests:
                self._go_on_with(request, may_run=may_run)

    def _go_on_with(self, request: Request, *, may_run: bool) -> None:
        try:
            if not may_run:
                _finish(request)
            elif self._consumers.closing:
                put_back(request)
            else:
                self._worker.process_task(request)
        except Exception:  # of this one alone
            logger.exception("highlander: the message of task %s could not be handed on", request.id)

    def give_back(self) -> None:
        """Return what waits to the front of its queues, the newest first: the worker is on its way out."""
        requests = self.waiting()
        self.forget()
        for request in reversed(requests):
            put_back(request)

    def forget(self) -> None:
        """The connection is lost: the broker delivers again what waits."""
        with self._lock:
            self._waiting.clear()


def copy_of(request: Request) -> Copy | None:
    """Return of which tick a request is which copy; None where it is none of a tick.

    Read from the message itself, where it is the same in both of Celery's protocols. A retry carries it along.
    """
    found: Any = (request.message.headers or {}).get(HEADER)
    try:
        return str(uuid.UUID(found["id"])), str(uuid.UUID(found["copy"]))
    except (AttributeError, KeyError, TypeError, ValueError):
        return None  # not ours, or of a release that says it in another way


def _finish(request: Request) -> None:
    """Acknowledge a copy that must not run, and have Celery forget it."""
    logger.info(
        "task %s is not run: another copy of the message of this tick was",
        request.id,
        extra={"action": "tick_run_already"},
    )
    state.task_ready(request)
    request.acknowledge()
