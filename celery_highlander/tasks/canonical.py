"""One text per value, the same before and after a message: what keys are made of; knows nothing of tasks.

Two values have one text if, and only if, they are equal once kombu's JSON has carried them. Three things are wider than
that: a UUID is its string (other producers send strings), a number is its value, whichever of `int`, `float` and
`Decimal` holds it, and an aware datetime is its instant. A datetime is not its string: kombu's JSON brings it back as a
datetime. Values that JSON refuses but other serializers carry (sets, enums, durations) have a text too.
"""

from __future__ import annotations

import json
import sys
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any
from uuid import UUID

from celery_highlander.errors import SingletonKeyError

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet

MAX_DEPTH = 64
"""How deep values may be nested: deeper than arguments are, and far from Python's own limit."""
_PLAIN_ZEROS = 21
"""Numbers with more zeros at an end are written with an exponent, so that `Decimal("1e999999")` is not a megabyte."""
_PLAIN_BELOW: int = 10**_PLAIN_ZEROS

_json_string: Callable[[str], str] = json.JSONEncoder(ensure_ascii=False).encode
_json_ascii: Callable[[str], str] = json.JSONEncoder().encode


def canonical(value: Any, depth: int = 0) -> str:
    """Return the text of a value, for instance `5`, `"eu"`, `[1, null]` or `{"id": 5}`.

    Args:
        value: what Celery's JSON carries, or sets, enums and timedeltas; nested as one likes.
        depth: in how many others the value is contained.

    Raises:
        SingletonKeyError: for NaN, for a structure that contains itself, and for any other type.
    """
    kind = type(value)
    if kind is str:
        return _string(value, depth)
    if kind is int:
        return _integer(value, depth)
    if depth > MAX_DEPTH:
        raise SingletonKeyError(
            f"a value that contains itself, or is nested deeper than {MAX_DEPTH} levels, has no text"
        )
    # By type(): isinstance() believes a proxy that poses as the type of what it stands for; json does not. In json's
    # order: native types, `__json__`, registered types.
    if text_of := _find(_NATIVE, kind):
        return text_of(value, depth)
    try:
        reduced = _reduced(value)
    except Exception as error:
        raise SingletonKeyError(f"{_called(kind)} raised {type(error).__name__} when asked for its text") from error
    if reduced is not value:
        return canonical(reduced, depth + 1)
    if text_of := _find(_REGISTERED, kind):
        return text_of(value, depth)
    raise SingletonKeyError(f"{_called(kind)} has no text that is the same in every process")


def plain(value: object) -> str:
    """Return the text of a value as part of a text: `canonical`, but strings without their quotation marks.

    Strings with control characters, which PostgreSQL and terminals dislike, are written as in JSON.

    Raises:
        SingletonKeyError: as `canonical` does.
    """
    text = canonical(value)
    if not text.startswith('"'):
        return text
    string: str = json.loads(text)
    return string if string.isprintable() else text[1:-1]


def _find(table: dict[type, Callable[[Any, int], str]], kind: type) -> Callable[[Any, int], str] | None:
    for base in kind.__mro__:
        if base in table:
            return table[base]
    return None


def _reduced(value: Any) -> object:
    """What kombu's JSON encodes in place of the value, or the value itself."""
    reducer = getattr(value, "__json__", None)
    if reducer is not None:
        return reducer()
    lazy_text = getattr(sys.modules.get("django.utils.functional"), "Promise", ())  # who has one has loaded it
    return str(value) if isinstance(value, lazy_text) else value


def _called(kind: type) -> str:
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"a value of type {module}{kind.__qualname__}"


def _string(value: str, _depth: int) -> str:
    if value.isascii() or _is_storable(value):
        return _json_string(value)
    # Half a surrogate pair cannot be stored; two halves that meet are one character after a trip through JSON.
    joined = value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return _json_string(joined) if _is_storable(joined) else _json_ascii(joined)


def _is_storable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _integer(value: int, _depth: int) -> str:
    if -_PLAIN_BELOW < value < _PLAIN_BELOW:
        return int.__repr__(value)
    return _decimal(Decimal(_digits(value)), 0)


def _digits(value: int) -> str:
    try:
        return int.__repr__(value)
    except ValueError:  # sys.set_int_max_str_digits(); json cannot write it either
        raise SingletonKeyError("an int of more digits than Python prints has no text") from None


def _float(value: float, _depth: int) -> str:
    if float.is_integer(value):
        return _integer(int(value), 0)
    return _decimal(Decimal(float.__repr__(value)), 0)  # 0.1 is the decimal that everybody means by it


def _decimal(value: Decimal, _depth: int) -> str:
    if Decimal.is_nan(value):
        raise SingletonKeyError("NaN has no text: it does not even equal itself")
    sign = "-" if Decimal.is_signed(value) else ""
    if Decimal.is_infinite(value):
        return f"{sign}inf"
    written = Decimal.as_tuple(value)
    assert isinstance(written.exponent, int)
    given = "".join(map(str, written.digits)).lstrip("0")
    digits = given.rstrip("0")
    exponent = written.exponent + len(given) - len(digits)
    if not digits:
        return "0"
    if 0 <= exponent <= _PLAIN_ZEROS:
        return f"{sign}{digits}{'0' * exponent}"
    if -_PLAIN_ZEROS <= exponent < 0:
        padded = digits.rjust(1 - exponent, "0")
        return f"{sign}{padded[:exponent]}.{padded[exponent:]}"
    return f"{sign}{digits}e{exponent}"


def _list(values: list[object] | tuple[object, ...], depth: int) -> str:
    return f"[{', '.join([canonical(value, depth + 1) for value in values])}]"


def _set(values: AbstractSet[object], depth: int) -> str:
    return f"set[{', '.join(sorted({canonical(value, depth + 1) for value in values}))}]"


def _dict(values: dict[object, object], depth: int) -> str:
    # Of the keys 1 and "1" the later one wins, as when JSON is read.
    texts = {_dict_key(key, depth + 1): canonical(value, depth + 1) for key, value in values.items()}
    return f"{{{', '.join([f'{key}: {texts[key]}' for key in sorted(texts)])}}}"


def _dict_key(key: object, depth: int) -> str:
    if isinstance(key, str):
        return _string(key, depth)
    if isinstance(key, int) and not isinstance(key, bool):
        return f'"{_digits(key)}"'
    if key is None or isinstance(key, (bool, float)):
        return json.dumps({key: 0})[1 : -len(": 0}")]  # a string; that of 1.0 is not that of 1
    if isinstance(key, Enum):
        return _dict_key(key.value, depth + 1)
    return canonical(key, depth)


def _datetime(value: datetime, _depth: int) -> str:
    if value.utcoffset() is None:
        return datetime.isoformat(value)
    try:
        return datetime.isoformat(value.astimezone(timezone.utc))
    except OverflowError:
        raise SingletonKeyError("a datetime whose instant lies outside of the years 1 to 9999 has no text") from None


def _timedelta(value: timedelta, _depth: int) -> str:
    sign, length = ("-", -value) if value.days < 0 else ("", value)
    fraction = f".{length.microseconds:06}" if length.microseconds else ""
    return f"{sign}P{length.days}DT{length.seconds}{fraction}S"


_NATIVE: dict[type, Callable[[Any, int], str]] = {
    str: _string,
    bool: lambda value, _: "true" if value else "false",
    int: _integer,
    float: _float,
    type(None): lambda _, __: "null",
    list: _list,
    tuple: _list,
    dict: _dict,
}
_REGISTERED: dict[type, Callable[[Any, int], str]] = {
    datetime: _datetime,
    date: lambda value, _: date.isoformat(value),
    time: lambda value, _: time.isoformat(value),
    Decimal: _decimal,
    UUID: lambda value, _: f'"{UUID.__str__(value)}"',
    bytes: lambda value, _: f"b{_json_ascii(value.decode('latin-1'))}",
    Enum: lambda value, depth: canonical(value.value, depth + 1),
    set: _set,
    frozenset: _set,
    timedelta: _timedelta,
}
