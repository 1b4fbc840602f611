"""One message of a singleton queue on its way through the worker: when it begins, when it ends, what becomes of it.

Celery's own sets of requests say less than that: they forget running tasks at a lost connection. So the callbacks that
the pool calls are watched. It knows nothing of elections and pools.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from billiard.exceptions import WorkerLostError
from celery.worker import state
from kombu.transport.virtual import QoS

from celery_highlander.clock import boot_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery.worker.request import Request
    from kombu.message import Message

logger = logging.getLogger("celery_highlander")

HEADER = "highlander"
"""The key in a request under which the process that runs its task finds the term."""

ACK_GRACE = 0.5
"""Seconds that a finished task's acknowledgement may take; until then its message might be given to the next leader."""


_PROCESS_DIED = (WorkerLostError, SystemExit, KeyboardInterrupt)  # as a request is told of it


class Run:
    """A request that has passed the gate of its queue.

    Attributes:
        begun: the pool has accepted it: its task may be running.
        ended_at: when its task had ended (boot-time clock), or None.
        settled: what it ended with has been handed to the broker.
        killed: its task was killed by us: whatever the pool says of it, its message goes back.
        returned: its message went back to the broker.
        orphaned: it had not begun when its connection was lost, so the pool drops it, and the broker delivers it again.
    """

    def __init__(
        self,
        request: Request,
        term: dict[str, Any],
        *,
        may_begin: Callable[[Run], bool],
        ended: Callable[[Run], None],
        refusal: Callable[[], BaseException],
        cancel: Callable[[Run], None] | None,
        process_died: Callable[[Run], None],
    ) -> None:
        """Watch `request` from now on, and tell its process of the term.

        Args:
            request: the request, not yet handed to the pool.
            term: the fields of a `TermInfo`.
            may_begin: asked by the pool's thread just before the task begins.
            ended: called once, on whichever thread, when the task has ended.
            refusal: makes what is raised to keep the pool from beginning.
            cancel: stops the task where Celery's own way, in a cold shutdown, would fail or acknowledge the message.
            process_died: called when the process that ran the task has died by itself, before anything comes of it.
        """
        self.request = request
        self.begun = self.settled = self.killed = self.returned = self.orphaned = False
        self.ended_at: float | None = None
        self._ended = ended
        request._request_dict[HEADER] = term
        _bear_a_closed_channel(request.message)
        accepted, rejected = request.on_accepted, request.reject

        def on_accepted(pid: int, time_accepted: float) -> object:
            if not may_begin(self):
                self.put_back()
                self.end()
                raise refusal()
            self.begun = True
            return accepted(pid, time_accepted)

        def reject(requeue: bool = False) -> object:  # as Celery has it
            self.returned = requeue
            return rejected(requeue=requeue)

        request.on_accepted = on_accepted
        request.reject = reject
        request.on_success = self._ending(request.on_success)
        failed = request.on_failure

        def on_failure(exc_info: Any, **options: Any) -> object:
            if not self.killed and isinstance(getattr(exc_info.exception, "exc", exc_info.exception), _PROCESS_DIED):
                process_died(self)
            return failed(exc_info, **options)

        request.on_failure = self._ending(on_failure)
        timed_out = request.on_timeout

        def on_timeout(soft: bool, timeout: float) -> object:  # as Celery has it
            return timed_out(soft, timeout) if soft else self._ending(timed_out)(soft, timeout)

        request.on_timeout = on_timeout
        if cancel is not None:

            def cancelled(pool: object, **options: Any) -> None:
                cancel(self)
                self.killed = True  # whatever still comes of it

            request.cancel = cancelled

    def _ending(self, tell: Callable[..., object]) -> Callable[..., object]:
        def told(*args: Any, **options: Any) -> object:
            try:
                if self.killed:
                    self.put_back()  # not a failure of the task, nor a success: it runs again
                    return None
                return tell(*args, **options)
            finally:
                self.end()

        return told

    def end(self) -> None:
        """Note that the task has ended; only the first time counts."""
        if self.ended_at is None:
            self.ended_at = boot_time()
            self._ended(self)

    def put_back(self) -> None:
        """Give the message back. One that was acknowledged early is lost, as with any task that is killed."""
        self.returned = True
        put_back(self.request)

    def is_over(self, now: float) -> bool:
        """Whether neither task nor message are this worker's any more."""
        if self.ended_at is not None:
            return self.settled or now - self.ended_at > ACK_GRACE
        return self.orphaned and not self.begun


def _bear_a_closed_channel(message: Message) -> None:
    """Have the acknowledgement of a message whose connection is lost fail as that of one whose connection breaks.

    Over Redis, kombu may raise an AttributeError then, which ends Celery's loop, and with it the worker. The broker
    delivers the message again anyway.
    """
    acknowledge = message.ack

    def ack(*args: Any, **options: Any) -> object:
        try:
            return acknowledge(*args, **options)
        except AttributeError:
            if getattr(message.channel, "connection", None) is None:
                raise ConnectionResetError("the connection over which the message came is lost") from None
            raise

    message.ack = ack


def put_back(request: Request) -> None:
    """Return a request's message to the broker, to where it was in its queue, and have Celery forget the request."""
    state.task_ready(request)
    if request.acknowledged:
        return
    channel: Any = request.message.channel
    if not hasattr(channel, "unacked_key"):
        request.reject(requeue=True)
        return
    # kombu's `reject` would put it behind all others in Redis.
    try:
        channel.qos.restore_by_tag(request.message.delivery_tag)
        QoS.ack(channel.qos, request.message.delivery_tag)
    except channel.connection_errors as error:
        logger.warning("a message could not be given back, the next leader finds it: %s", error)
    request.acknowledged = True
