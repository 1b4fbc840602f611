"""The event `highlander-run-skipped`, for `celery events` and other monitors.

The worker's main process sends it, over its own dispatcher, beside `task-succeeded`: a pool child has none, and would
need a connection to the broker. All that the main process knows of a result is its text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kombu.utils.imports import symbol_by_name

from celery_highlander.tasks.singleton import SKIPPED, singleton_tasks
from celery_highlander.worker.monitoring import let_pass

if TYPE_CHECKING:
    from celery import Celery

SKIPPED_EVENT = "highlander-run-skipped"
"""With the fields `uuid` (the task id), `key` and `task`."""

_BEGINNING, _END = f"{{'{SKIPPED}': '", "'}"


def announce_skips(app: Celery) -> None:
    """Have this worker send the event for the singleton tasks of `app`; before it makes the first request."""
    for task in singleton_tasks(app):
        if not getattr(task.Request, "announces_skips", False):
            kind = symbol_by_name(task.Request)
            task.Request = type(kind.__name__, (_AnnouncesSkips, kind), {})


class _AnnouncesSkips:
    """Comes before a class of requests."""

    announces_skips = True

    task: Any
    _eventer: Any

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002  # as Celery has it
        super().send_event(type, **fields)  # type: ignore[misc]  # there is one behind this class
        key = key_in(fields.get("result")) if type == "task-succeeded" else None
        if key is not None and self._eventer and _lets_tasks_pass(self._eventer):
            let_pass(self._eventer)
            super().send_event(SKIPPED_EVENT, key=key, task=str(self.task.name))  # type: ignore[misc]  # as above


def _lets_tasks_pass(eventer: Any) -> bool:
    """Whether task events are sent, which `celery control enable_events` may have changed."""
    return not eventer.groups or "task" in eventer.groups


def key_in(result: object) -> str | None:
    """Return the key in the text of the result of a skipped run; None in any other."""
    if not (isinstance(result, str) and result.startswith(_BEGINNING) and result.endswith(_END)):
        return None
    return result[len(_BEGINNING) : -len(_END)].replace("\\'", "'")
