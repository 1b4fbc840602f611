"""What `@singleton_task` may be told, checked; knows nothing of brokers and locks."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from celery_highlander.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CONFLICT = ("skip", "raise", "retry", "requeue", "wait")
SCOPES = ("run", "queue", "both")
LOST = ("abort", "continue")
UNAVAILABLE = ("retry", "raise", "run")
MOST_SLOTS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class SingletonOptions:
    """The options of a singleton task.

    Attributes:
        unique_on: names of the arguments that make the key, `"*"` for all of them; without it the whole task is one.
        key: instead of that, a template such as `"account:{account_id}"`, or a function of the task's arguments; tasks
            with the same key exclude each other.
        on_conflict: what becomes of a run whose key is held: `"skip"` (it ends in SUCCESS, its result says so; the
            default, but with `scope="queue"`, where a message is meant to wait, it is `"retry"`),
            `"raise"` (`SingletonConflictError`), `"retry"` (again in `retry_delay` seconds or so, however often),
            `"requeue"` (to the end of its queue), `"wait"` (for up to `wait_timeout` seconds, then as `"retry"`), or a
            function of the task and the conflict, whose result is the run's.
        limit: how many runs may hold a key at once.
        scope: `"run"`: only runs exclude each other. `"queue"`: moreover, one message at most waits to be run: while it
            does, `delay()` sends none, and returns the result of that one. `"both"`: the same until its run has ended.
        on_lost: what becomes of a run whose lock is lost: `"abort"` (`SingletonRunLostError` is raised in it; what has
            not ended when the lease does is killed), or `"continue"`, which is unsafe: another run may begin beside it.
        on_unavailable: what becomes of a run while the database is away: `"retry"`, `"raise"`
            (`DatabaseUnavailableError`), or `"run"`, which is unsafe: it runs without a lock.
        fenced: give each run a token, for `current_run().fence(connection)`.
        wait_timeout: seconds.
        retry_delay: seconds; half as much more or less, at random.
    """

    unique_on: str | list[str] | tuple[str, ...] | None = None
    key: str | Callable[..., object] | None = None
    on_conflict: str | Callable[..., object] = "skip"
    limit: int = 1
    scope: str = "run"
    on_lost: str = "abort"
    on_unavailable: str = "retry"
    fenced: bool = False
    wait_timeout: float = 10.0
    retry_delay: float = 5.0

    @classmethod
    def of(cls, given: Mapping[str, Any], task: str) -> SingletonOptions:
        """Return the options.

        Raises:
            ConfigurationError: with everything that is wrong with them.
        """
        unknown = [name for name in given if name not in OPTIONS]
        problems = [_unknown(name) for name in unknown]
        problems += _problems({name: value for name, value in given.items() if name in OPTIONS})
        if problems:
            raise ConfigurationError.of(f"{task}: {problem}" for problem in problems)
        if given.get("scope") == "queue":
            given = {"on_conflict": "retry", **given}
        return cls(**given)


OPTIONS = frozenset(spec.name for spec in fields(SingletonOptions))


def misspelt(name: str) -> str | None:
    """Return the option of ours that a task option looks like, which Celery would take without a word."""
    close = difflib.get_close_matches(name, OPTIONS, n=1, cutoff=0.8)
    return close[0] if close and name not in OPTIONS else None


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, OPTIONS, n=1, cutoff=0.5)
    return f"unknown singleton option {name!r}" + (f": did you mean {close[0]!r}?" if close else "")


def _problems(given: Mapping[str, Any]) -> list[str]:
    problems = [
        f"{name} = {given[name]!r} is none of {', '.join(map(repr, allowed))}"
        + (", nor a function" if name == "on_conflict" else "")
        for name, allowed in (
            ("on_conflict", CONFLICT),
            ("scope", SCOPES),
            ("on_lost", LOST),
            ("on_unavailable", UNAVAILABLE),
        )
        if name in given and given[name] not in allowed and not (name == "on_conflict" and callable(given[name]))
    ]
    limit = given.get("limit", 1)
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MOST_SLOTS:
        problems.append(f"limit = {limit!r} is not a whole number from 1 to {MOST_SLOTS}")
    elif limit > 1 and given.get("scope", "run") != "run":
        problems.append(f"limit = {limit} does not go with scope = {given['scope']!r}: only one message may wait there")
    if not isinstance(given.get("fenced", False), bool):
        problems.append(f"fenced = {given['fenced']!r} is neither True nor False")
    for name in ("wait_timeout", "retry_delay"):
        seconds = given.get(name, 1.0)
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < 86400:  # noqa: PLR2004  # a day
            problems.append(f"{name} = {seconds!r} is not a number of seconds above 0 and below a day")
    return problems
