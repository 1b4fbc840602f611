"""Any scheduler, under guard: its own storage and entries, but it publishes and writes only while its beat leads."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from celery.beat import Scheduler

from celery_highlander.errors import ConfigurationError

if TYPE_CHECKING:
    from celery_highlander.beat.publishing import Publishing


@functools.cache
def guarded(kind: Any) -> type[Scheduler]:
    """Return a subclass of `kind` that publishes under a `Publishing`, given as the argument `publishing`.

    Raises:
        ConfigurationError: it is no scheduler, or one that elects by itself.
    """
    if not (isinstance(kind, type) and issubclass(kind, Scheduler)):
        raise ConfigurationError(f"highlander_beat_scheduler is {kind!r}, not a subclass of celery.beat.Scheduler")

    class Guarded(kind):  # whichever it is
        trouble = ""

        def __init__(self, app: Any, *args: Any, publishing: Publishing, **kwargs: Any) -> None:
            self._publishing = publishing
            super().__init__(app, *args, **kwargs)
            self.sync_every_tasks = 1  # a successor reads from its storage what was sent

        @property
        def producer(self) -> Any:
            return self._publishing.producer(self.Producer)

        def tick(self, *args: Any, **kwargs: Any) -> float:
            self._publishing.check()
            self._publishing.producer(self.Producer)  # before an entry is taken out of the heap
            return float(super().tick(*args, **kwargs) or 0.0)

        def apply_async(self, *args: Any, **kwargs: Any) -> Any:
            self._publishing.check()
            return super().apply_async(*args, **kwargs)

        def sync(self) -> None:
            if self._publishing.is_allowed():  # later on it is the successor's
                super().sync()

        def close(self) -> None:
            try:
                super().close()
            finally:
                self._publishing.disconnect()

    Guarded.__name__ = Guarded.__qualname__ = f"Guarded{kind.__name__}"
    return Guarded
