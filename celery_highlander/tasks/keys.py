"""The key of a call, from a task's options and the call's arguments; knows nothing of Celery, nor of who holds it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from inspect import Parameter, Signature
from string import Formatter
from typing import Any

from celery_highlander.errors import ConfigurationError, SingletonKeyError
from celery_highlander.tasks.binding import Binding, wrong_name
from celery_highlander.tasks.canonical import canonical, plain

MAX_LENGTH = 200
"""No key is longer than this many characters."""
ALL = "*"
"""Stands for every argument in `unique_on`."""

_HEAD = 160
_CURE = (
    "Name another argument in unique_on, or give key=: a template of what identifies the value, such as "
    "'account:{account.id}', or a function of the task's arguments."
)
_Maker = Callable[[Sequence[Any], Mapping[str, Any]], str]


class KeyMaker:
    """Makes the key of a call from its arguments: calls with one key are the ones that must not run at once.

    - With neither `unique_on` nor `key`, all calls have one key: the task's name. Their arguments are not looked at.
    - With `unique_on`, calls have one key if those arguments are the same, whether given by position, by keyword or by
      default: `shop.sync_account(account_id=5, region="eu")`, in the order of the task's parameters. If the task takes
      `**kwargs`, names beyond its parameters are looked up there; one that is absent is None.
    - With a template as `key`, such as `"account:{account_id}"` or `"{order.id}"`: the template with the values in it.
      The task's name is no part of it, so tasks may share keys; that no two calls share one by accident is up to you.
    - With a function as `key`: what it returns when it is called as the task is, defaults filled in: a string, a
      number, a UUID or a tuple of such; again without the task's name.

    A key longer than `MAX_LENGTH` characters becomes its beginning and a hash of the whole.

    Args:
        task_name: the name of the task.
        function: what runs, as callers see it: without `self`.
        unique_on: the name of one argument, several of them, or `"*"` for all.
        key: a template or a function, in place of `unique_on`.

    Raises:
        ConfigurationError: with everything that is wrong with the options.
    """

    __slots__ = ("_make", "_task")

    def __init__(
        self,
        task_name: str,
        function: Callable[..., object],
        unique_on: str | Iterable[str] | None = None,
        key: str | Callable[..., object] | None = None,
    ) -> None:
        problems: list[str] = []
        if unique_on is not None and key is not None:
            problems.append("unique_on and key are both given, and only one of them can make the key")
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            raise ConfigurationError(f"{task_name}: the arguments of {function!r} cannot be told") from None
        make = _whole_task(task_name)
        if unique_on is not None:
            make = _of_arguments(task_name, signature, _names(unique_on, signature, problems))
        if key is not None:
            make = _of_key(key, signature, problems)
        if problems:
            raise ConfigurationError.of(f"{task_name}: {problem}" for problem in problems)
        self._task = task_name
        self._make: _Maker = make

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """Return the key of one call: 1 to `MAX_LENGTH` characters.

        Raises:
            SingletonKeyError: the arguments do not fit the task, or a value of which the key is made has no text.
        """
        try:
            text = self._make(args, kwargs)
        except SingletonKeyError as error:
            message = f"{self._task}: this call has no key: {error.message}."
            raise SingletonKeyError(message, error.hint) from error.__cause__
        return text if len(text) <= MAX_LENGTH else _shortened(text)


def _whole_task(task_name: str) -> _Maker:
    return lambda args, kwargs: task_name  # noqa: ARG005  # called as the others are


def _of_arguments(task_name: str, signature: Signature, names: Sequence[str]) -> _Maker:
    binding = Binding(signature, names)
    labels = [f"{', ' if place else ''}{name}=" for place, name in enumerate(names)]
    opening = f"{task_name}("

    def make(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        values = binding.values(args, kwargs)
        text = opening
        place = 0
        try:
            for place, value in enumerate(values):
                text += labels[place] + canonical(value)
        except SingletonKeyError as error:
            raise _refused(f"the argument {names[place]!r}", error) from error.__cause__
        return f"{text})"

    return make


def _of_key(key: object, signature: Signature, problems: list[str]) -> _Maker:
    if isinstance(key, str):
        return _of_template(signature, _pieces(key, signature, problems))
    if not callable(key):
        problems.append(f"key = {key!r} is neither a template like 'account:{{account_id}}' nor a function")
        return _whole_task("")
    problems += _wrong_function(key, signature)
    return _of_function(signature, key)


def _of_template(signature: Signature, pieces: Sequence[tuple[str, str | None]]) -> _Maker:
    formatter = Formatter()
    binding = Binding(signature, [*dict.fromkeys(_root(field) for _, field in pieces if field)])

    def make(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        arguments = dict(zip(binding.names, binding.values(args, kwargs), strict=True))
        text = ""
        for literal, field in pieces:
            text += literal
            if field is None:
                continue
            try:
                value, _ = formatter.get_field(field, (), arguments)
            except Exception as error:
                raise SingletonKeyError(f"{{{field}}} raised {type(error).__name__}") from error
            try:
                text += plain(value)
            except SingletonKeyError as error:
                raise _refused(f"{{{field}}}", error) from error.__cause__
        return _not_empty(text, "the template")

    return make


def _of_function(signature: Signature, key: Callable[..., object]) -> _Maker:
    binding = Binding(signature, ())

    def make(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        bound = binding.bind(args, kwargs)
        try:
            value = key(*bound.args, **bound.kwargs)
        except Exception as error:
            raise SingletonKeyError(f"the function that makes it raised {type(error).__name__}") from error
        if value is None:
            raise SingletonKeyError("the function that makes it returned None")
        try:
            text = plain(value)
        except SingletonKeyError as error:
            raise _refused("the result of the function that makes it", error) from error.__cause__
        return _not_empty(text, "the function that makes it")

    return make


def _refused(what: str, error: SingletonKeyError) -> SingletonKeyError:
    return SingletonKeyError(f"{what}: {error.message}", _CURE)


def _not_empty(text: str, origin: str) -> str:
    if not text:
        raise SingletonKeyError(f"{origin} gave an empty text")
    return text


def _shortened(text: str) -> str:
    return f"{text[:_HEAD]}…{blake2b(text.encode(), digest_size=16).hexdigest()}"


def _names(unique_on: object, signature: Signature, problems: list[str]) -> list[str]:
    """The arguments that unique_on names, in the order of the signature, those in `**kwargs` last."""
    listed = [unique_on] if isinstance(unique_on, str) else unique_on
    if not isinstance(listed, Iterable) or isinstance(listed, (bytes, Mapping)):
        problems.append(f"unique_on = {unique_on!r} is neither the name of an argument nor a list of names")
        return []
    given = list(listed)
    if not given:
        problems.append("unique_on names no argument; leave it out to have one key for the whole task")
    names = [name for name in given if isinstance(name, str)]
    problems += [f"unique_on names {name!r}, which is not a string" for name in given if not isinstance(name, str)]
    unknown = [problem for name in names if name != ALL and (problem := wrong_name(name, signature))]
    problems += [f"unique_on names {problem}" for problem in unknown]
    known = [name for name in signature.parameters if name in names or ALL in names]
    return known + sorted(set(names) - {*known, ALL}) if not unknown else known


def _root(field: str) -> str:
    return re.split(r"[.\[]", field, maxsplit=1)[0]


class _Probe:
    """Has every attribute and every item, to try fields of a template on."""

    def __getattr__(self, name: str) -> _Probe:
        return self

    def __getitem__(self, name: object) -> _Probe:
        return self


def _pieces(template: str, signature: Signature, problems: list[str]) -> list[tuple[str, str | None]]:
    """The template as texts, each with the field that follows it, if one does."""
    if not template:
        problems.append("key = '' is empty; leave it out to have one key for the whole task")
    try:
        parsed = list(Formatter().parse(template))
        for _, field, _, _ in parsed:
            if field and not _root(field).isdigit():
                Formatter().get_field(field, (), {_root(field): _Probe()})
    except ValueError as error:
        problems.append(f"key = {template!r} is malformed: {error}")
        return []
    for _, field, specification, conversion in parsed:
        if field is None:
            continue
        root = _root(field)
        if not root or root.isdigit():
            problems.append(f"key = {template!r}: {{{field}}} has to name an argument")
        elif problem := wrong_name(root, signature):
            problems.append(f"key = {template!r} names {problem}")
        if specification or conversion:
            problems.append(f"key = {template!r}: {{{field}}} allows neither ':' nor '!'; give a function for that")
    return [(literal, field) for literal, field, _, _ in parsed]


def _wrong_function(key: Callable[..., object], signature: Signature) -> list[str]:
    if inspect.iscoroutinefunction(key):
        return [f"key = {key!r} is a coroutine function; the key is made without an event loop"]
    try:
        accepted = inspect.signature(key)
    except (TypeError, ValueError):
        return []  # some builtins do not tell what they take
    call = signature.bind_partial()
    call.arguments |= {
        name: None
        for name, one in signature.parameters.items()
        if one.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    }
    try:
        accepted.bind(*call.args, **call.kwargs)
    except TypeError as error:
        return [f"key = {key!r} has to take what the task takes, {signature}, but takes {accepted}: {error}"]
    return []
