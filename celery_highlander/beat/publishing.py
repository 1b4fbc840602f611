"""What every publication of a beat passes: the lease, checked immediately before it, and a connection that is fresh."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError

from celery_highlander.beat.broker import IDLE_LIMIT
from celery_highlander.clock import boot_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kombu import Connection

    from celery_highlander.worker.leadership import Leadership


class NotLeading(BaseException):  # no error, and not for those who catch errors around a publication
    """The term is over: unwinds whatever is about to publish."""


class Publishing:
    """The publications of one term.

    Args:
        term: the term.
        connect: opens a connection to the broker.
    """

    def __init__(self, term: Leadership, connect: Callable[[], Connection]) -> None:
        self._term = term
        self._connect = connect
        self._connection: Connection | None = None
        self._producer: Any = None
        self._used_at = 0.0

    @property
    def elected_at(self) -> float:
        """When the term began to act (seconds since the epoch)."""
        return self._term.elected_at

    def check(self) -> None:
        """Raise `NotLeading` if nothing may be published at this instant."""
        if not self._term.is_valid():
            raise NotLeading

    def may_finish(self) -> bool:
        """Whether what was begun may be finished: no successor acts yet, even where this term has to stop."""
        return boot_time() < self._term.lease_deadline

    def failed_by(self, error: BaseException) -> bool:
        """Whether it is the broker's error, not the message's: then the message is to be published again."""
        kinds: tuple[type[BaseException], ...] = (OperationalError, OSError)
        if self._connection is not None:
            kinds += (*self._connection.connection_errors, *self._connection.channel_errors)
        return isinstance(error, kinds)

    def producer(self, make: Callable[..., Any]) -> Any:
        """Return a producer on a connection that has been in use lately.

        Raises:
            Exception: the transport's own: the broker cannot be reached.
        """
        now = time.monotonic()
        if now - self._used_at > IDLE_LIMIT:
            self.disconnect()
        self._used_at = now
        if self._producer is None:
            self._connection = self._connect()
            self._producer = make(self._connection, auto_declare=False)
        return self._producer

    def disconnect(self) -> None:
        """Let go of the connection."""
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.release()


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Have SIGTERM and SIGINT wait: beat's handler raises SystemExit, also between a publication and its record."""
    if threading.current_thread() is not threading.main_thread():
        yield  # there they do not arrive
        return
    came: list[int] = []
    before: dict[int, Any] = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)
