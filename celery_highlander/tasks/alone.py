"""A keeper for a process that has none: no worker, and none of a worker's own processes."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from celery_highlander.keeper.children import ADDRESS_VARIABLE
from celery_highlander.worker.highlander import Highlander
from celery_highlander.worker.link import KeeperLink, LinkPlan

if TYPE_CHECKING:
    from celery import Celery

FIRST_WORD_TIMEOUT = 5.0
"""Seconds to wait for the keeper's first word from the database."""

_links: list[KeeperLink] = []  # as long as the process lives


def is_alone() -> bool:
    """Return whether the keeper of this process is its own."""
    return bool(_links)


def start_keeper(app: Celery) -> str:
    """Start a keeper that lives as long as this process; return its address, which is in the environment from now on.

    Raises:
        HighlanderError: the settings are wrong, or the database may not be used as it is.
    """
    highlander = Highlander.installed_in(app)
    # Whatever this process is, it is not one of ours to kill: a run that does not end in time is told, no more.
    settings = replace(highlander.settings(), on_stuck="continue")
    plan = LinkPlan(
        settings=settings,
        keys={},
        worker=f"{Path(sys.argv[0]).name or 'python'}-{os.getpid()}",
        processes={},
        load={},
        target=lambda: highlander.target(settings),
        target_changes=highlander.has_changing_target,
        group=f"{settings.namespace}+runs",
    )
    link = KeeperLink(plan, None)
    link.start(FIRST_WORD_TIMEOUT)
    _links.append(link)
    return os.environ[ADDRESS_VARIABLE]
