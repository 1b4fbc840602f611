"""What the commands have in common: the app's plugin, and errors told in a sentence or two."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from celery_highlander.cli import output
from celery_highlander.errors import (
    BrokerUnavailableError,
    ConfigurationError,
    DatabaseUnavailableError,
    HighlanderError,
    RefusedError,
    WorkerUnavailableError,
)
from celery_highlander.worker import auto
from celery_highlander.worker.highlander import Highlander

if TYPE_CHECKING:
    from collections.abc import Iterator

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")


def plugin_of(ctx: click.Context) -> Highlander:
    """Return the app's plugin, installed now if a setting alone asks for it, with all that the app declares."""
    app = ctx.obj.app
    try:
        app.loader.import_default_modules()
        wanted = auto.is_wanted(app)
    except Exception as error:  # noqa: BLE001  # whatever the user's modules raise
        raise ConfigurationError(
            f"the application cannot be loaded: {type(error).__name__}: {error}",
            "Its modules are imported to find the singletons that they declare; `celery -A proj report` shows more.",
        ) from None
    plugin = Highlander.of(app)
    if plugin is None and not wanted:
        raise ConfigurationError(
            f"celery-highlander is not set up in the app {app.main or 'that was loaded'!r}.",
            "Set highlander_url (app.conf.highlander_url = 'postgresql+psycopg2://app@db/shop'), and name the app with "
            "`celery -A proj …`.",
        )
    return plugin or Highlander(app)


@contextlib.contextmanager
def told(ctx: click.Context, *, as_json: bool) -> Iterator[None]:
    """Tell an error in a sentence or two, and exit with its code."""
    try:
        yield
    except HighlanderError as error:
        if as_json:
            output.write_json({"error": {"code": error.code, "message": error.message, "hint": error.hint}})
        else:
            output.complain(error.message, error.hint)
        unavailable = isinstance(error, (DatabaseUnavailableError, BrokerUnavailableError, WorkerUnavailableError))
        refused = isinstance(error, RefusedError)
        ctx.exit(output.EX_UNAVAILABLE if unavailable else output.EX_PROBLEM if refused else output.EX_CONFIG)
