"""The beat beside a worker: Celery's own service, in a singleton process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery import current_app
from celery.beat import Service

from celery_highlander.beat.scheduler import HighlanderScheduler

if TYPE_CHECKING:
    from celery_highlander.worker.leadership import Leadership


def run(leadership: Leadership) -> None:  # noqa: ARG001  # the scheduler asks for the present one
    """Tick until the leadership ends. It has no remote control: the worker answers for this node."""
    service = Service(current_app._get_current_object(), scheduler_cls=HighlanderScheduler, remote_control=False)
    service.start(embedded_process=True)
