"""What each side may say to the other: types of messages, and the fields without which they mean nothing.

A table for each direction. What is not listed may be left out, or comes from a later release: it is not checked here,
and ignored where it is not known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import NoneType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_highlander.keeper.messages import Message

Check = Callable[[Any], bool]
Vocabulary = Mapping[str, Mapping[str, Check]]


def _is(*types: type) -> Check:
    """Of one of these types; True is no number."""
    return lambda value: isinstance(value, types) and (bool in types or not isinstance(value, bool))


_TEXT, _WHOLE, _NUMBER, _TABLE, _FLAG = _is(str), _is(int), _is(int, float), _is(dict), _is(bool)
_WHOLE_OR_NONE, _NUMBER_OR_NONE, _TABLE_OR_NONE = _is(int, NoneType), _is(int, float, NoneType), _is(dict, NoneType)


def _TEXTS(value: Any) -> bool:  # noqa: N802  # used like the others
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(_NUMBER(item) for item in value)


def _counts_of(check: Check) -> Check:
    """A table whose values are all of that kind."""
    return lambda value: isinstance(value, dict) and all(check(item) for item in value.values())


_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def _rows_of(*columns: Check) -> Check:
    """A list of rows with these columns."""

    def is_right(value: Any) -> bool:
        return isinstance(value, list) and all(
            isinstance(row, list)
            and len(row) == len(columns)
            and all(check(item) for check, item in zip(columns, row, strict=True))
            for row in value
        )

    return is_right


def _ID(value: Any) -> bool:  # noqa: N802  # used like the others
    return isinstance(value, str) and _UUID.fullmatch(value) is not None


_TERM = {"name": _TEXT, "token": _WHOLE}

WORKER_SAYS: Vocabulary = {
    "hello": {
        **dict.fromkeys(("node", "worker", "address", "namespace", "schema"), _TEXT),
        **dict.fromkeys(("timing", "keys", "processes", "launch"), _TABLE),
        "pid": _WHOLE,
        "cell": _WHOLE,
        "worker_timeout": _NUMBER,
        "target": _TABLE_OR_NONE,
    },
    "campaign": {"names": _TEXTS},
    "withdraw": {"names": _TEXTS, "reason": _TEXT},
    "work_stopped": {**_TERM, "reason": _TEXT},
    "runs_wanted": {"runs": _rows_of(_ID, _ID)},
}
"""To the keeper."""

KEEPER_SAYS: Vocabulary = {
    "opened": {"backend_pid": _WHOLE},
    "closed": {"reason": _TEXT},
    "refused": {"code": _TEXT, "message": _TEXT, "hint": _TEXT},
    "elected": _TERM,
    "stop": {**_TERM, "reason": _TEXT, "kill_deadline": _NUMBER_OR_NONE},
    "ended": {**_TERM, "reason": _TEXT},
    "phase": {"name": _TEXT, "phase": _TEXT, "token": _WHOLE_OR_NONE},
    "process": {**_TERM, "pid": _WHOLE},
    "failed": {**_TERM, "reason": _TEXT},
    "counted": {"counts": _counts_of(_NUMBER), "values": _counts_of(_numbers)},
    "seen": {"sightings": _counts_of(_NUMBER), "forbidden": _TEXTS},
    "log": {"level": _WHOLE, "message": _TEXT},
    "runs": {"runs": _rows_of(_ID, _ID, _FLAG)},
}
"""To the worker."""

KEEPER_ORDERS: Vocabulary = {
    "load": {
        **dict.fromkeys(("namespace", "schema", "worker"), _TEXT),
        **dict.fromkeys(("functions", "log"), _TABLE),
        "cell": _WHOLE,
        "keeper": _WHOLE,
        "kill_margin": _NUMBER,
        "sys_path": _TEXTS,
    },
    "fork": _TERM,
    "reap": {"pid": _WHOLE},
}
"""To the launcher."""

LAUNCHER_SAYS: Vocabulary = {"failed": {"message": _TEXT}}
"""To the keeper."""

RUN_SAYS: Vocabulary = {
    "take": {
        **dict.fromkeys(("run", "base", "limit"), _WHOLE),
        **dict.fromkeys(("name", "task", "task_id"), _TEXT),
        **dict.fromkeys(("fenced", "abort"), _FLAG),
        "wait": _NUMBER,
    },
    "free": {"run": _WHOLE},
    "claim": {
        **dict.fromkeys(("claim", "key"), _WHOLE),
        **dict.fromkeys(("namespace", "name", "task", "task_id", "queue"), _TEXT),
        "lives": _NUMBER_OR_NONE,
    },
    "forget": {"task_id": _TEXT, "claim": _WHOLE_OR_NONE},
}
"""A process that runs singleton tasks, to the keeper."""

KEEPER_ANSWERS: Vocabulary = {
    "answer": {"run": _WHOLE, "result": _TEXT, "reason": _TEXT, **dict.fromkeys(("key", "token"), _WHOLE_OR_NONE)},
    "claimed": {"claim": _WHOLE, "result": _TEXT},
    "lost": {"run": _WHOLE, "kill_at": _NUMBER, "reason": _TEXT},
}
"""To it."""

PROCESS_SAYS: Vocabulary = {
    "up": {"pid": _WHOLE},
    "ended": {"how": _TEXT},
    "counted": {"counts": _counts_of(_NUMBER), "values": _counts_of(_numbers)},
}
"""To the keeper."""


def fault_in(message: Message, vocabulary: Vocabulary) -> str:
    """Return what is wrong with a message, or nothing; one of an unknown type is right."""
    for name, is_right in vocabulary.get(message["type"], {}).items():
        if name not in message:
            return f"{message['type']!r} without {name!r}"
        if not is_right(message[name]):
            return f"{message['type']!r} with {name}={message[name]!r:.80}"
    return ""
