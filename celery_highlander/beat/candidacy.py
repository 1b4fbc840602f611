"""How a scheduler comes to lead: as a node of its own (`celery beat`), or as a singleton process beside a worker."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Protocol

from celery_highlander.clock import boot_time
from celery_highlander.store.terms import beat_group
from celery_highlander.worker.counting import deliver_to
from celery_highlander.worker.http import Endpoint
from celery_highlander.worker.leadership import Leadership, TermInfo
from celery_highlander.worker.link import KeeperLink, LinkPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery_highlander.config import Settings
    from celery_highlander.keeper.cell import LeaseCell
    from celery_highlander.store.connecting import Target

FIRST_WORD_TIMEOUT = 15.0
"""Seconds that a starting beat waits for its keeper's first word from the database."""

FAILED_REST = 30.0
"""Seconds for which a beat rests that cannot publish, so that another one gets its chance."""


class Candidacy(Protocol):
    """What a scheduler knows of its leadership."""

    def leadership(self) -> Leadership | None:
        """Return the present one, if its work may act at this instant."""

    def wait(self, timeout: float) -> None:
        """Wait until that may have changed, for `timeout` seconds at most."""

    def at_work(self) -> contextlib.AbstractContextManager[bool]:
        """Work in it is part of the term: the term is not over before its end. False: there is no term."""

    def hold(self) -> None:
        """Keep the term from being over, between pieces of work too: something is open that a successor opens."""

    def let_go(self) -> None:
        """Nothing is open any more."""

    def abort_with(self, abort: Callable[[], None]) -> None:
        """Have `abort` called, on another thread, when work that has to stop takes too long."""

    def progress(self) -> None:
        """Say that the work makes progress."""

    def give_up(self, reason: str) -> None:
        """Let another node lead: the work cannot be done here."""

    def leave(self) -> None:
        """Lead no more, for good. Safe in a signal handler; returns at once."""

    def finish(self) -> None:
        """After `leave`: wait until the leadership is released, for a bounded time."""


class OwnCandidacy:
    """A beat that is a node, with a keeper of its own.

    Args:
        name: the singleton.
        key: its lock key.
        settings: the settings.
        beat: the name under which this beat is shown.
        target: returns where to connect to.
        target_changes: whether `target` has to be asked for each connection.
    """

    def __init__(
        self, name: str, key: int, settings: Settings, beat: str, target: Callable[[], Target], *, target_changes: bool
    ) -> None:
        self._name = name
        self._settings = settings
        plan = LinkPlan(
            settings=settings,
            keys={name: key},
            worker=beat,
            processes={},
            load={},
            target=target,
            target_changes=target_changes,
            group=beat_group(settings.namespace),
        )
        self.link = KeeperLink(plan, None)
        term = TermInfo(name, 0, 0.0, settings.namespace, settings.schema, settings.kill_margin)
        self._work = TickWork(term, self.link.cell, settings.drain_timeout / 2, settings.progress_timeout)
        self._endpoint: Endpoint | None = None
        self.link.works[name] = self._work
        self.link.loop = self._work

    def start(self) -> None:
        """Start the keeper, and take part in the elections.

        Raises:
            HighlanderError: the database may not be used as it is.
        """
        self.link.start(FIRST_WORD_TIMEOUT)
        self.link.campaign([self._name])
        deliver_to(self.link.metrics.take)
        if self._settings.http_address:
            self._endpoint = Endpoint(self._settings.http_address, self.link)
            self._endpoint.start()

    def leadership(self) -> Leadership | None:
        """See `Candidacy`."""
        return self._work.leadership()

    def wait(self, timeout: float) -> None:
        """See `Candidacy`."""
        if self._work.changed.wait(timeout):
            self._work.changed.clear()

    def at_work(self) -> contextlib.AbstractContextManager[bool]:
        """See `Candidacy`."""
        return self._work.at_work()

    def hold(self) -> None:
        """See `Candidacy`."""
        self._work.held = True

    def let_go(self) -> None:
        """See `Candidacy`."""
        self._work.held = False

    def abort_with(self, abort: Callable[[], None]) -> None:
        """See `Candidacy`."""
        self._work.abort = abort

    def progress(self) -> None:
        """See `Candidacy`: a tick that hangs is noticed here without it."""

    def give_up(self, reason: str) -> None:
        """See `Candidacy`."""
        self.link.withdraw([self._name], reason, FAILED_REST)

    def leave(self) -> None:
        """See `Candidacy`."""
        self.link.leave("beat shutting down")

    def finish(self) -> None:
        """See `Candidacy`."""
        self.link.finish(self._settings.drain_timeout + self._settings.lease_duration)
        if self._endpoint is not None:
            self._endpoint.close()


class TickWork:
    """The work of the term, for the link: it is over when no tick is under way, and none can begin any more."""

    def __init__(self, term: TermInfo, cell: LeaseCell, patience: float, timeout: float) -> None:
        self.abort: Callable[[], None] = lambda: None
        self.changed = threading.Event()
        self.held = False  # set while there is work, so no look at it comes in between
        self.timeout = timeout
        self._term = term
        self._cell = cell
        self._patience = patience
        self._lock = threading.Lock()
        self._leadership: Leadership | None = None
        self._working = False
        self._worked_at = 0.0
        self._stopped_at = 0.0

    # -- the scheduler's thread ----------------------------------------------------------------------------------------

    def leadership(self) -> Leadership | None:
        """Return the term, if its work may act."""
        leadership = self._leadership
        return leadership if leadership is not None and leadership.is_valid() else None

    @contextlib.contextmanager
    def at_work(self) -> Iterator[bool]:
        """Keep the term from being over; False: it is."""
        with self._lock:
            self._worked_at = boot_time()
            self._working = self.leadership() is not None
        try:
            yield self._working
        finally:
            self._working = False

    # -- the link's thread ---------------------------------------------------------------------------------------------

    def start(self, token: int, elected_at: float) -> None:
        """The term begins."""
        term = self._term
        info = TermInfo(term.name, token, elected_at, term.namespace, term.schema, term.kill_margin)
        self._leadership = Leadership(info, self._cell)
        self.changed.set()

    def stop(self, reason: str, kill_at: float | None, *, hung: bool) -> None:
        """The term has to end."""
        self._stopped_at = boot_time()
        if self._leadership is not None:
            self._leadership._must_stop()
        self.changed.set()

    def tend(self, now: float) -> None:
        """Between two ticks there is nothing to do."""

    def is_over(self, now: float) -> bool:
        """Whether no tick is under way, and nothing open."""
        with self._lock:
            if not (self._working or self.held):
                self._leadership = None
                return True
        if now - self._stopped_at > self._patience:
            self._stopped_at = now
            self.abort()
        return False

    def is_hung(self, now: float) -> bool:
        """Whether a tick takes longer than anything may take without progress."""
        return self._working and now - self._worked_at > self.timeout


class GivenCandidacy:
    """A beat that is the singleton process of a worker: its keeper elects, kills it and starts it again."""

    def __init__(self, leadership: Leadership) -> None:
        self._leadership = leadership
        leadership.progress()  # from now on it is missed

    def leadership(self) -> Leadership | None:
        """See `Candidacy`.

        Raises:
            SystemExit: the term is over, and this process with it.
        """
        if not self._leadership.is_valid():
            raise SystemExit
        return self._leadership

    def wait(self, timeout: float) -> None:
        """See `Candidacy`."""
        self._leadership.wait(timeout)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[bool]:
        """See `Candidacy`: the keeper sees this process end."""
        yield self._leadership.is_valid()

    def hold(self) -> None:
        """See `Candidacy`: the term lasts as long as this process."""

    def let_go(self) -> None:
        """See `Candidacy`."""

    def abort_with(self, abort: Callable[[], None]) -> None:
        """See `Candidacy`: this process is killed."""

    def progress(self) -> None:
        """See `Candidacy`."""
        self._leadership.progress()

    def give_up(self, reason: str) -> None:
        """See `Candidacy`: the keeper misses its progress soon enough."""

    def leave(self) -> None:
        """See `Candidacy`: this process ends."""

    def finish(self) -> None:
        """See `Candidacy`."""
