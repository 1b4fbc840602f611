"""Any scheduler, under guard: its own storage and entries, but it publishes and writes only while its beat leads.

What it knows of a tick is written to its storage once the message is with the broker, and never before: whoever dies in
between leaves a tick that the next leader publishes (again), but none that nobody publishes.
"""

from __future__ import annotations

import shelve
from typing import TYPE_CHECKING, Any

from celery.beat import Scheduler, SchedulingError

from celery_highlander.beat.publishing import uninterrupted

if TYPE_CHECKING:
    from celery_highlander.beat.publishing import Publishing


def guarded(kind: Any) -> type[Scheduler]:
    """Return a subclass of the scheduler `kind` that publishes under a `Publishing`, its argument `publishing`."""
    more = {"schedule_changed": _look_for_edits} if hasattr(kind, "schedule_changed") else {}
    return type(f"Guarded{kind.__name__}", (Guard, kind), more)


class Guard(Scheduler):
    """What comes before the guarded class in the order of resolution."""

    trouble = ""

    def __init__(self, app: Any, *, publishing: Publishing, **kwargs: Any) -> None:
        self._publishing = publishing
        self._unsent = False
        self._failure: BaseException | None = None
        super().__init__(app=app, **kwargs)

    def setup_schedule(self) -> None:
        """Read the entries.

        A scheduler whose entries can be edited takes the first state that it sees for the one that it has read, and it
        looks some seconds later. Edits fall into a failover; so it looks at once, before it reads.
        """
        look = getattr(self, "schedule_changed", None)
        if callable(look):
            look()
        super().setup_schedule()

    @property
    def producer(self) -> Any:
        """A producer on a connection that has been in use lately."""
        return self._publishing.producer(self.Producer)

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Publish what is due; return the seconds until the next pass.

        Raises:
            NotLeading: the term is over.
            Exception: the broker's, the storage's: whoever comes next begins with what the storage says.
        """
        self._publishing.check()
        self._publishing.producer(self.Producer)  # before an entry is taken out of the heap
        wait = super().tick(*args, **kwargs)
        if self._failure is not None:
            raise self._failure
        return float(wait or 0.0)

    def reserve(self, entry: Any) -> Any:
        """Move an entry on; that is not to be written down yet."""
        self._unsent = True
        return super().reserve(entry)

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        """Publish an entry, then write down that it was, or that it never can be."""
        self._unsent = True
        self._publishing.check()
        with uninterrupted():
            try:
                result = super().apply_async(*args, **kwargs)
            except SchedulingError as failure:
                error = failure.__cause__ or failure.__context__ or failure
                if self._publishing.failed_by(error):
                    self._failure = error
                else:
                    self._settle()
                raise  # `apply_entry` logs it
            self._settle()
            return result

    def _settle(self) -> None:
        self._unsent = False
        self._do_sync()

    def should_sync(self) -> bool:
        """Return whether it is time for a `sync`."""
        return not self._unsent and bool(super().should_sync())

    @property
    def _may_write(self) -> bool:
        return not self._unsent and self._publishing.may_finish()

    def sync(self) -> None:
        """Write to the storage; later on it is the successor's."""
        if self._may_write:
            super().sync()

    def close(self) -> None:
        """Let go of storage and broker."""
        try:
            if not self._may_write:
                _forget(getattr(self, "_store", None))
            super().close()
        finally:
            self._unsent = True  # for finalizers: nothing is written any more
            self._publishing.disconnect()


def _look_for_edits(self: Any) -> bool:
    """Return whether the entries were edited. A signal waits: amid a clean-up it would be logged as an error."""
    with uninterrupted():
        return bool(super(Guard, self).schedule_changed())


def _forget(store: Any) -> None:
    """Drop what a shelf (of Celery's PersistentScheduler) would write when it is closed."""
    if isinstance(store, shelve.Shelf):
        store.writeback = False  # type: ignore[attr-defined]  # typeshed does not know of it
        store.cache.clear()  # type: ignore[attr-defined]  # the same
