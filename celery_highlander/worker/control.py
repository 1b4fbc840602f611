"""Remote control: `celery inspect highlander`. The handler runs in the worker's loop: it only reads memory."""

from __future__ import annotations

from typing import Any

from celery.worker.control import inspect_command

from celery_highlander.worker.bootsteps import describe


@inspect_command()
def highlander(state: Any, **kwargs: Any) -> dict[str, Any]:
    """Singletons that this worker leads, or stands by for."""
    step = getattr(state.consumer.controller, "highlander", None)
    return describe(step) if step is not None else {"error": "celery-highlander is not active in this worker"}
