"""Remote control: `celery inspect highlander`, `celery control highlander_step_down|pause|resume NAME -d NODE`.

The handlers run in the worker's loop: they read memory, and leave orders for the link's thread. What they change holds
for this worker alone, and until it ends; `celery -A proj highlander pause` is for the whole cluster, and lasts.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from celery.worker.control import control_command, inspect_command, nok, ok

from celery_highlander.worker.bootsteps import describe

if TYPE_CHECKING:
    from celery_highlander.worker.bootsteps import HighlanderStep

_ABSENT = "celery-highlander is not active in this worker"


def _step_of(state: Any) -> HighlanderStep | None:
    return getattr(state.consumer.controller, "highlander", None)


@inspect_command()
def highlander(state: Any, **kwargs: Any) -> dict[str, Any]:
    """Singletons that this worker leads, or stands by for."""
    step = _step_of(state)
    return describe(step) if step is not None else {"error": _ABSENT}


def _done(told: str) -> dict[str, str]:
    answer: dict[str, str] = ok(told)
    return answer


def _refused(told: str) -> dict[str, str]:
    answer: dict[str, str] = nok(told)
    return answer


def _problem(step: HighlanderStep, name: str) -> str:
    names = [*step.queues, *step.processes]
    if name in names:
        return ""
    close = difflib.get_close_matches(name, names, n=1)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    return f"there is no singleton {name!r} here.{guess} There is: {', '.join(map(repr, names)) or 'none'}."


@control_command(args=[("name", str)], signature="NAME")
def highlander_step_down(state: Any, name: str = "", **kwargs: Any) -> dict[str, str]:
    """Have this worker hand a singleton to another one."""
    step = _step_of(state)
    if step is None:
        return _refused(_ABSENT)
    if problem := _problem(step, name):
        return _refused(problem)
    if describe(step)["singletons"][name]["role"] != "leader":
        return _refused(f"this worker does not lead {name!r}")
    settings = step.settings
    rest = settings.heartbeat_interval + settings.heartbeat_timeout
    step.link.withdraw([name], "step-down asked for by remote control", rest, patient=True)
    return _done(f"stepping down from {name!r}")


@control_command(args=[("name", str)], signature="NAME")
def highlander_pause(state: Any, name: str = "", **kwargs: Any) -> dict[str, str]:
    """Have this worker not lead a singleton until it is resumed, or the worker is started again."""
    step = _step_of(state)
    if step is None:
        return _refused(_ABSENT)
    if problem := _problem(step, name):
        return _refused(problem)
    step.link.pause(name, "pause asked for by remote control")
    return _done(f"this worker does not lead {name!r} until it is resumed")


@control_command(args=[("name", str)], signature="NAME")
def highlander_resume(state: Any, name: str = "", **kwargs: Any) -> dict[str, str]:
    """Let this worker lead a singleton again that was paused on it."""
    step = _step_of(state)
    if step is None:
        return _refused(_ABSENT)
    if problem := _problem(step, name):
        return _refused(problem)
    step.link.resume(name)
    return _done(f"this worker may lead {name!r} again")
