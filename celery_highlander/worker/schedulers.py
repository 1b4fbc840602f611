"""The scheduler class that a beat is to guard: found, or refused, when a beat starts or a worker that runs it."""

from __future__ import annotations

from typing import Any

from celery.beat import Scheduler
from kombu.utils.imports import symbol_by_name

from celery_highlander.errors import ConfigurationError

_SETTING = "highlander_beat_scheduler"


def find_scheduler(path: str) -> type[Scheduler]:
    """Return the class that `highlander_beat_scheduler` names.

    Raises:
        ConfigurationError: there is none, it is no scheduler, or it is one that elects by itself.
    """
    try:
        kind: Any = symbol_by_name(path)
    except Exception as error:  # a foreign module may raise anything when it is imported
        raise ConfigurationError(
            f"{_SETTING} = {path!r} cannot be imported: {type(error).__name__}: {error}",
            "Is the package installed here, and the name right? It has to be `module:Class`.",
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Scheduler)):
        raise ConfigurationError(
            f"{_SETTING} = {path!r} is {kind!r}, not a subclass of celery.beat.Scheduler.",
            "Name the scheduler class that `celery beat -S` would be given without celery-highlander.",
        )
    packages = {base.__module__.partition(".")[0] for base in kind.__mro__}
    if "celery_highlander" in packages:
        raise ConfigurationError(
            f"{_SETTING} = {path!r} is what guards other schedulers.",
            f"Leave {_SETTING} unset: the scheduler with the tick ledger is the default.",
        )
    if "redbeat" in packages:
        raise ConfigurationError(
            f"{_SETTING} = {path!r}: RedBeat elects by itself, with a lock in Redis.",
            "Under two elections the leader of the one need not be the leader of the other, and then nobody sends. "
            f"Leave {_SETTING} unset, so that beat_schedule is run with the tick ledger, or name a scheduler that does "
            "not elect, such as django_celery_beat.schedulers:DatabaseScheduler; or run RedBeat alone, with "
            "`celery beat -S redbeat.RedBeatScheduler`.",
        )
    return kind
