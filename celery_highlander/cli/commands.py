"""The command group; Celery imports it for every `celery …` command, so it also enables the plugin by setting alone."""

from __future__ import annotations

import click
from celery.bin.base import CeleryCommand

from celery_highlander.worker import auto

auto.enable()


@click.group(name="highlander", help="Who leads what, and whether it can work: `celery -A proj highlander status`.")
def highlander() -> None:
    """The group itself does nothing."""
