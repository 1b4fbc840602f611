"""Runs `celery -A proj highlander …` in this process, and never lets a password or a traceback pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_highlander.cli import highlander

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PASSWORD = "s3cret"


def invoke(words: Sequence[str], conf: Mapping[str, Any], app: Celery | None = None) -> Any:
    """Run the command with the app `shop` (or `app`) of this configuration; click's result."""
    app = app or Celery("shop", set_as_current=False)
    app.conf.update({"broker_url": "redis://127.0.0.1:1/0", **conf})
    result = CliRunner().invoke(highlander, list(words), obj=CLIContext(app, no_color=True, workdir=None))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert PASSWORD not in result.output
    assert "Traceback" not in result.output
    return result
