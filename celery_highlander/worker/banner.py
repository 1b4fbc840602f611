"""The plugin's part of the worker's banner: the singletons, and the database without its password."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_highlander.store.connecting import place_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery.worker import WorkController

    from celery_highlander.config import Settings
    from celery_highlander.worker.highlander import Highlander


def show(
    w: WorkController, plugin: Highlander, settings: Settings, queues: Iterable[str], processes: Iterable[str]
) -> None:
    """Have the banner list them, between the queues and the tasks."""
    extra_info = getattr(w, "extra_info", None)
    if extra_info is None:
        return  # not a worker that shows one
    section = lines_of(plugin, settings, queues, processes)
    w.extra_info = lambda: "\n".join(["", *section, ""]) + (extra_info() or "")


def lines_of(plugin: Highlander, settings: Settings, queues: Iterable[str], processes: Iterable[str]) -> list[str]:
    """Return the section's lines."""
    role = "" if settings.eligible else ", never leads (highlander_eligible)"
    return [
        "[highlander]",
        *(f"  . {name} (queue)" for name in queues),
        *(f"  . {name} (process)" for name in processes),
        f"  namespace {settings.namespace!r} in {_database(plugin, settings)}{role}",
        "",
    ]


def _database(plugin: Highlander, settings: Settings) -> str:
    if plugin.has_changing_target:
        return settings.engine or "the application's engine"
    return place_of(plugin.target(settings).url)
