"""Installing the plugin from a setting alone: Celery imports this for every `celery …` command, before the app.

`celery.commands` entry points are loaded first of all. So this module can see every app that is created (a fixup),
and every worker before it reads its bootsteps (`worker_init`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import Celery, signals

from celery_highlander.config import PREFIX
from celery_highlander.worker.highlander import Highlander, add_worker_options

if TYPE_CHECKING:
    from celery.worker import WorkController

FIXUP = "celery_highlander.worker.auto:fixup"


def fixup(app: Celery) -> None:
    """Called with each app as it is created; must not touch its configuration yet."""
    add_worker_options(app)


def is_wanted(app: Celery) -> bool:
    """Whether the app's configuration asks for highlander."""
    return bool(app.conf.get(f"{PREFIX}url") or app.conf.get(f"{PREFIX}engine"))


@signals.worker_init.connect(weak=False)
def install(sender: WorkController | None = None, **kwargs: Any) -> None:
    """Install the plugin in the app of a worker that begins, if its settings ask for it."""
    if sender is not None and Highlander.of(sender.app) is None and is_wanted(sender.app):
        Highlander(sender.app)


def enable() -> None:
    """Watch the creation of apps; doing it twice changes nothing."""
    Celery.builtin_fixups = set(Celery.builtin_fixups) | {FIXUP}
