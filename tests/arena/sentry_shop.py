"""The beats' app with Sentry, which watches its entries; what would be sent to Sentry is written down instead."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import sentry_sdk
from celery.schedules import crontab, schedstate, schedule
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.transport import Transport

from tests.arena.beat_shop import EXECUTIONS, app

if TYPE_CHECKING:
    from sentry_sdk.envelope import Envelope

CHECK_INS = "check-ins"


class Journal(Transport):
    """Writes check-ins down: a file for each process, a line for each of them."""

    def capture_envelope(self, envelope: Envelope) -> None:
        """Write it down, in one write."""
        for item in envelope.items:
            if item.type == "check_in":
                line = json.dumps(item.payload.json).encode() + b"\n"
                descriptor = os.open(EXECUTIONS / f"{CHECK_INS}.{os.getpid()}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                try:
                    os.write(descriptor, line)
                finally:
                    os.close(descriptor)


def _often(self: Any, last_run_at: Any) -> schedstate:
    left = 1.0 - (self.now() - self.maybe_make_aware(last_run_at)).total_seconds()
    return schedstate(left <= 0, left if left > 0 else 1.0)


class Minutely(schedule):
    """Every minute, as Sentry is told, which knows no shorter intervals; every second in truth."""

    is_due = _often


class Weekly(crontab):
    """The same of a crontab."""

    is_due = _often


sentry_sdk.init(
    dsn="https://key@sentry.invalid/1",
    transport=Journal,
    integrations=[CeleryIntegration(monitor_beat_tasks=True, exclude_beat_tasks=["unwatched"])],
)
SCHEDULES = {"interval": Minutely(60.0), "crontab": Weekly(minute="30", hour="7", day_of_week="1"), "unwatched": 1.0}
app.conf.beat_schedule = {
    name: {
        "task": "run",
        "schedule": when,
        "args": (name,),
        "options": {"queue": "ticks", "headers": {"own": "header"}},
    }
    for name, when in SCHEDULES.items()
}
