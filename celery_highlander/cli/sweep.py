"""`sweep`: looks at once for messages that are recorded as waiting, and are gone."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from celery_highlander.cli import broker
from celery_highlander.store import run_status
from celery_highlander.tasks import sweep, waiting

if TYPE_CHECKING:
    from celery_highlander.store.run_status import WaitingMessage
    from celery_highlander.store.waiting import Row
    from celery_highlander.worker.highlander import Highlander


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep found: messages that are gone, and those that still wait."""

    gone: list[Row]
    left: list[WaitingMessage]

    @property
    def missed(self) -> list[WaitingMessage]:
        """Those that were nowhere in the last look, and are not taken as gone yet."""
        return [message for message in self.left if message.missed]


def run(highlander: Highlander, age: float) -> Swept:
    """Look for the messages that nobody has looked for within `age` seconds.

    Raises:
        HighlanderError: database or broker cannot be asked.
    """
    logging.getLogger("celery_highlander").addHandler(logging.NullHandler())  # it is printed here already
    settings = highlander.settings()
    with broker.connected(highlander.app):
        pass
    try:
        gone = sweep.sweep(highlander.app, age)
    finally:
        waiting.let_go(highlander.app)
    left = run_status.read(highlander.target(settings), settings.namespace, settings.schema).waiting
    return Swept(sorted(gone, key=lambda row: row.name), left)


def as_json(swept: Swept) -> dict[str, Any]:
    """Return what was found as plain values."""
    return {
        "gone": [
            {"key": row.name, "task": row.task, "task_id": row.task_id, "queue": row.queue, "age": row.age}
            for row in swept.gone
        ],
        "missed": [message.task_id for message in swept.missed],
        "waiting": len(swept.left),
    }


def write(swept: Swept) -> None:
    """Print what was found."""
    for row in swept.gone:
        click.echo(f"Gone: {row.name}, the message {row.task_id} of the queue {row.queue!r}; another one may be sent.")
    if not swept.gone:
        click.echo("No message is gone.")
    if swept.left:
        click.echo(f"Messages that still wait: {len(swept.left)}.")
    if swept.missed:
        click.echo(
            f"Nowhere in this look: {', '.join(message.task_id for message in swept.missed)}. A message counts as gone "
            f"after {sweep.LOOKS} looks\nin a row that missed it: sweep again."
        )
