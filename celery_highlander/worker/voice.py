"""Says on the worker's own thread what other threads have to say, in pools of greenlets.

There the locks of logging, and whatever the receivers of signals use, are made for greenlets of one thread: another
thread that had to wait for one might wait for ever.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from celery_highlander.worker import native

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

_INTERVAL = 0.05  # seconds


class Voice:
    """Takes functions and log records from any thread, and lets a greenlet deal with them."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._own_thread = native.thread_ident()
        self._unsaid: deque[Callable[[], object]] = deque()
        logger.addFilter(self._filter)
        threading.Thread(target=self._speak, daemon=True).start()  # a greenlet, where this is needed

    def announce(self, tell: Callable[[], object]) -> None:
        """Have `tell` called soon."""
        self._unsaid.append(tell)

    def flush(self) -> None:
        """Say what is unsaid; on the worker's own thread."""
        while self._unsaid:
            try:
                self._unsaid.popleft()()
            except Exception:  # noqa: PERF203  # the next one has to be said all the same
                self._logger.exception("highlander: an announcement failed")

    def _filter(self, record: logging.LogRecord) -> bool:
        if native.thread_ident() == self._own_thread:
            return True
        self._unsaid.append(lambda: self._logger.handle(record))
        return False

    def _speak(self) -> None:
        while True:
            self.flush()
            time.sleep(_INTERVAL)
