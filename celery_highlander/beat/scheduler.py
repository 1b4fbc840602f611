"""`celery beat -S highlander`: stands by without blocking, ticks while its node leads, and stands by again.

It publishes nothing itself. For each term it makes an *inner* scheduler, which begins with what its storage says, and
is dropped with the term: the one with the tick ledger, or the application's own one under guard.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

from celery.beat import Scheduler
from kombu.exceptions import KombuError

from celery_highlander.beat.broker import open_for_publishing
from celery_highlander.beat.candidacy import GivenCandidacy, OwnCandidacy
from celery_highlander.beat.connection import LedgerConnection
from celery_highlander.beat.guard import guarded
from celery_highlander.beat.ledger import LedgerScheduler
from celery_highlander.beat.publishing import NotLeading, Publishing
from celery_highlander.beat.warming import warm_up
from celery_highlander.config import BEAT
from celery_highlander.errors import ConfigurationError, HighlanderError, StaleTermError
from celery_highlander.store import sa
from celery_highlander.store.connecting import Target, place_of, plain
from celery_highlander.worker.bootsteps import refuse
from celery_highlander.worker.highlander import Highlander
from celery_highlander.worker.leadership import present_leadership
from celery_highlander.worker.schedulers import find_scheduler

if TYPE_CHECKING:
    from celery import Celery

    from celery_highlander.beat.candidacy import Candidacy
    from celery_highlander.worker.leadership import Leadership

logger = logging.getLogger("celery_highlander")

STANDBY_WAIT = 1.0
"""Seconds for which one pass waits at most: beat is asked whether it still ticks."""

TRY_AGAIN = (0.1, 0.5, 1.0, 2.0)
"""Seconds after which work that failed is tried again, and again."""


def _of_drivers() -> tuple[type[Exception], ...]:
    """The errors of databases, where a guarded scheduler has loaded what raises them."""
    return (sa.DBAPIError,) if "sqlalchemy" in sys.modules else ()


class HighlanderScheduler(Scheduler):
    """The scheduler of a beat of which only one in the cluster is active."""

    def __init__(self, app: Celery, *args: Any, lazy: bool = False, **kwargs: Any) -> None:
        """Make one.

        Args:
            app: the app, with `Highlander(app)`.
            args: as for `celery.beat.Scheduler`.
            lazy: for introspection only: takes no part in elections.
            kwargs: as for `celery.beat.Scheduler`, and for the guarded scheduler if there is one.
        """
        self._candidacy: Candidacy | None = None
        self._inner: Any = None
        self._term: Leadership | None = None
        self._resume_at = 0.0
        self._failures = 0
        self._failing_since: float | None = None
        self._said = ""
        self._closing = False
        self._in_tick = False
        self._is_warm = False
        self._options = kwargs
        self._highlander = Highlander.of(app) or Highlander(app)
        try:
            self._settings = self._highlander.settings()
            self._key = self._highlander.beat_key(self._settings)
            path = self._settings.beat_scheduler
            self._guarded = guarded(find_scheduler(path)) if path else None
        except ConfigurationError as error:
            raise refuse(error) from None
        super().__init__(app, *args, lazy=lazy, **kwargs)

    def setup_schedule(self) -> None:
        """Take part in the elections."""
        leadership = present_leadership()
        if leadership is not None:
            self._candidacy = GivenCandidacy(leadership)
            return
        highlander, settings = self._highlander, self._settings
        candidacy = OwnCandidacy(
            BEAT,
            self._key,
            settings,
            f"beat.{os.getpid()}@{socket.gethostname()}",
            lambda: highlander.target(settings),
            target_changes=highlander.has_changing_target,
        )
        try:
            candidacy.start()
        except HighlanderError as error:
            raise refuse(error) from None
        self._candidacy = candidacy
        highlander.link = candidacy.link

    @property
    def info(self) -> str:
        """What beat's banner shows."""
        settings = self._settings
        where = place_of(settings.url) if settings.url else settings.engine or "the application's engine"
        inner = settings.beat_scheduler or "ticks on record"
        return f"    . singleton -> {BEAT} of {settings.namespace!r}, {where}\n    . schedule -> {inner}"

    def get_schedule(self) -> Any:
        """The entries, while this beat is active."""
        return self._inner.schedule if self._inner is not None else self.data

    def set_schedule(self, schedule: Any) -> None:
        """As Celery's own; the inner scheduler has its own entries."""
        self.data = schedule

    schedule = property(get_schedule, set_schedule)

    # -- the passes of beat's loop -------------------------------------------------------------------------------------

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Do one pass: stand by, or publish what is due; waits for what comes next, so there is nothing to sleep for.

        Raises:
            SystemExit: the singleton process has to end.
        """
        candidacy = self._candidacy
        if candidacy is None or self._closing:
            return STANDBY_WAIT
        term = candidacy.leadership()
        if self._term is not None and term is not self._term:
            self._stand_down()
        if term is None:
            if not self._is_warm:
                self._is_warm = True
                warm_up(self.app)
            candidacy.wait(STANDBY_WAIT)
            return 0
        left = self._resume_at - time.monotonic()
        if left > 0:
            term.wait(min(left, STANDBY_WAIT))
        else:
            self._resume_at = time.monotonic() + self._pass(candidacy, term)
        if self._failing_since is None:
            candidacy.progress()
        return 0

    def _pass(self, candidacy: Candidacy, term: Leadership) -> float:
        """Let the inner scheduler tick; return the seconds until its next pass."""
        self._in_tick = True
        try:
            with candidacy.at_work() as may_work:
                if not may_work:
                    return 0.0
                if self._inner is None:
                    self._inner = self._make_inner(candidacy, term)
                    self._term = term
                wait = self._inner.tick()
                if wait and self._inner.should_sync():
                    self._inner._do_sync()
            if self._inner.trouble:
                return self._failed(candidacy, self._inner.trouble)
        except NotLeading:
            self._stand_down()
            return 0.0
        except StaleTermError as error:
            logger.warning("highlander: %s", error.message, extra={"action": "stale_term"})
            self._stand_down()
            return STANDBY_WAIT  # the keeper finds out as well, and ends the term
        except Exception as error:  # noqa: BLE001  # beat goes on, whatever the schedule or a database does
            self._stand_down()
            return self._failed(candidacy, self._plain(error), error)
        finally:
            self._in_tick = False
        self._succeeded()
        return max(0.0, min(float(wait or 0.0), float(self._inner.max_interval)))

    def _plain(self, error: Exception) -> str:
        """What an error says, without a password."""
        if isinstance(error, HighlanderError):
            return str(error)
        try:
            target = self._highlander.target(self._settings)
        except HighlanderError:  # which may be the very error
            target = Target("postgresql://", {})
        return plain(error, target)

    def _failed(self, candidacy: Candidacy, reason: str, error: Exception | None = None) -> float:
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        if reason != self._said:
            self._said = reason
            # What a database or broker says is told in one line; of anything else its developer needs the traceback.
            unexpected = error is not None and not isinstance(
                error, (HighlanderError, KombuError, OSError, *_of_drivers())
            )
            logger.error(
                "highlander: beat cannot go on, and tries again: %s",
                reason,
                extra={"action": "beat_failed"},
                exc_info=error if unexpected else None,
            )
        timeout = self._settings.progress_timeout
        if now - self._failing_since > timeout:
            self._failing_since = now
            candidacy.give_up(f"no tick could be published for {timeout:g} s")
        self._failures += 1
        return TRY_AGAIN[min(self._failures, len(TRY_AGAIN)) - 1]

    def _succeeded(self) -> None:
        if self._failing_since is not None:
            logger.info("highlander: beat goes on", extra={"action": "beat_recovered"})
        self._failures, self._failing_since, self._said = 0, None, ""

    def _make_inner(self, candidacy: Candidacy, term: Leadership) -> Any:
        settings = self._settings
        publishing = Publishing(term, lambda: open_for_publishing(self.app, settings.drain_timeout))
        common = {"max_interval": self._options.get("max_interval"), "Producer": self.Producer}
        if self._guarded is not None:
            candidacy.hold()
            options = {name: value for name, value in self._options.items() if name not in common}
            return self._guarded(self.app, publishing=publishing, **common, **options)
        ledger = LedgerConnection(self._key, term.token)
        candidacy.abort_with(ledger.abort)
        return LedgerScheduler(self.app, ledger=ledger, publishing=publishing, settings=settings, **common)

    def _stand_down(self) -> None:
        """Drop the inner scheduler, with what it knows."""
        inner, self._inner, self._term = self._inner, None, None
        self._resume_at = 0.0
        if inner is not None:
            with contextlib.suppress(Exception):
                inner.close()
        if self._candidacy is not None:
            self._candidacy.let_go()

    # -- the end -------------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Nothing: the inner scheduler has written down what it did."""

    def close(self) -> None:
        """Leave; called in beat's signal handler first, and again when its loop has ended."""
        again, self._closing = self._closing, True
        if self._candidacy is None:
            return
        self._candidacy.leave()
        if not self._in_tick:
            self._stand_down()
        if again:
            self._candidacy.finish()
