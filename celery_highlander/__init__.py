"""There can be only one: Celery singletons elected through PostgreSQL. The public names, and nothing else."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_highlander.errors import (
        ConfigurationError,
        HighlanderError,
        LockSessionError,
        SingletonConflictError,
        SingletonRunLostError,
        StaleTermError,
    )
    from celery_highlander.store.fencing import fence
    from celery_highlander.tasks.singleton import SingletonTask, current_run, singleton_task, skipped_key
    from celery_highlander.worker.highlander import Highlander
    from celery_highlander.worker.inside import LeadershipLostError
    from celery_highlander.worker.leadership import Leadership, current_leadership
    from celery_highlander.worker.signals import leader_elected, leader_stepped_down, leadership_lost, run_skipped

__all__ = [
    "ConfigurationError",
    "Highlander",
    "HighlanderError",
    "Leadership",
    "LeadershipLostError",
    "LockSessionError",
    "SingletonConflictError",
    "SingletonRunLostError",
    "SingletonTask",
    "StaleTermError",
    "current_leadership",
    "current_run",
    "fence",
    "leader_elected",
    "leader_stepped_down",
    "leadership_lost",
    "run_skipped",
    "singleton_task",
    "skipped_key",
]

_HOMES = {
    "ConfigurationError": "errors",
    "Highlander": "worker.highlander",
    "HighlanderError": "errors",
    "Leadership": "worker.leadership",
    "LeadershipLostError": "worker.inside",
    "LockSessionError": "errors",
    "SingletonConflictError": "errors",
    "SingletonRunLostError": "errors",
    "SingletonTask": "tasks.singleton",
    "StaleTermError": "errors",
    "current_leadership": "worker.leadership",
    "current_run": "tasks.singleton",
    "fence": "store.fencing",
    "leader_elected": "worker.signals",
    "leader_stepped_down": "worker.signals",
    "leadership_lost": "worker.signals",
    "run_skipped": "worker.signals",
    "singleton_task": "tasks.singleton",
    "skipped_key": "tasks.singleton",
}


def __getattr__(name: str) -> Any:  # whatever the public name is
    """Import a public name when it is first used: the keeper's process must not import Celery (PEP 562)."""
    if name == "__version__":
        return import_module("importlib.metadata").version("celery-highlander")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
