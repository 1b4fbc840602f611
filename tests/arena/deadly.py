"""A beat that is struck at a chosen point on a tick's way: once in the whole cluster, after some ticks have passed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery_highlander.beat import scheduler
from celery_highlander.beat.ledger import LedgerScheduler

if TYPE_CHECKING:
    from celery.beat import ScheduleEntry

    from celery_highlander.store.ticks import Tick

POINTS = ("before_claim", "after_claim", "before_publish", "after_publish", "after_settle")
STRUCK = Path(os.environ.get("HIGHLANDER_ARENA_JOURNALS", ".")) / "struck"
_AFTER = 5  # ticks


class DeadlyLedger(LedgerScheduler):
    """Kills or stops its own process at the point that `HIGHLANDER_ARENA_STRIKE` names, as in `after_claim SIGKILL`."""

    published = 0

    def _strike(self, point: str) -> None:
        where, _, number = os.environ["HIGHLANDER_ARENA_STRIKE"].partition(" ")
        if where == point and self.published >= _AFTER and not STRUCK.exists():
            STRUCK.write_text(str(os.getpid()))
            os.kill(os.getpid(), getattr(signal, number))

    def setup_schedule(self) -> None:
        super().setup_schedule()
        claim, settle = self._ledger.claim, self._ledger.settle

        def claimed(*args: Any) -> Any:
            self._strike("before_claim")
            found = claim(*args)
            self._strike("after_claim")
            return found

        def settled(*args: Any) -> None:
            settle(*args)
            self._strike("after_settle")

        self._ledger.claim, self._ledger.settle = claimed, settled  # type: ignore[method-assign,assignment]  # to strike there

    def _options_of(self, entry: ScheduleEntry, tick: Tick) -> dict[str, Any]:
        self._strike("before_publish")  # the lease has been looked at
        return super()._options_of(entry, tick)

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        result = super().apply_async(*args, **kwargs)
        self._strike("after_publish")
        self.published += 1
        return result


setattr(scheduler, "LedgerScheduler", DeadlyLedger)  # noqa: B010  # the one that it makes
DeadlyScheduler = scheduler.HighlanderScheduler
