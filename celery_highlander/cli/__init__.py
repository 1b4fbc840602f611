"""`celery -A proj highlander …`: the commands of operators."""

from celery_highlander.cli.commands import highlander

__all__ = ["highlander"]
