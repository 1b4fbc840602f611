"""What the arguments of a call are to a signature; knows nothing of keys."""

from __future__ import annotations

import difflib
from inspect import Parameter
from typing import TYPE_CHECKING, Any

from celery_highlander.errors import SingletonKeyError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from inspect import BoundArguments, Signature


class Binding:
    """Finds the values of some arguments in a call, as Python would bind it.

    Args:
        signature: what the call has to fit.
        names: of parameters, or, if there is a `**kwargs`, of what may be in it; one that is absent there is None.
    """

    __slots__ = ("_fitting", "_places", "_required", "_signature", "_var_keyword", "_variadic", "names")

    def __init__(self, signature: Signature, names: Sequence[str]) -> None:
        parameters = list(signature.parameters.values())
        self.names = names
        self._signature = signature
        self._variadic = any(one.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD) for one in parameters)
        self._var_keyword = var_keyword(signature)
        # For calls of tasks without *args and **kwargs, which Signature.bind() takes several microseconds for: by the
        # number of positional arguments, which keywords may follow and which have to; and where each value is.
        positional = [one for one in parameters if one.kind is not Parameter.KEYWORD_ONLY]
        self._fitting: list[frozenset[str]] = []
        self._required: list[frozenset[str]] = []
        for given in range(len(positional) + 1):
            rest = parameters[given:]
            self._fitting.append(frozenset(one.name for one in rest if one.kind is not Parameter.POSITIONAL_ONLY))
            self._required.append(frozenset(one.name for one in rest if one.default is Parameter.empty))
        places = {one.name: (one.name, place, one.default) for place, one in enumerate(parameters)}
        self._places = [places[name] for name in names if name in places]

    def values(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """Return the values in the order of `names`, defaults filled in.

        Raises:
            SingletonKeyError: the call does not fit the signature.
        """
        if self._variadic:
            found = self.bind(args, kwargs).arguments
            beyond = found.get(self._var_keyword, {})
            return [found[name] if name in found else beyond.get(name) for name in self.names]
        given = len(args)
        if given >= len(self._fitting) or not (self._required[given] <= kwargs.keys() <= self._fitting[given]):
            self.bind(args, kwargs)  # raises, in Python's words
        return [args[place] if place < given else kwargs.get(name, default) for name, place, default in self._places]

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> BoundArguments:
        """Bind all arguments, defaults filled in.

        Raises:
            SingletonKeyError: the call does not fit the signature.
        """
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise SingletonKeyError(f"its arguments do not fit: {error}") from error
        bound.apply_defaults()
        # Python 3.13 binds a call that lacks a positional-only one, if a keyword for the **kwargs has its name.
        for one in self._signature.parameters.values():
            if one.name not in bound.arguments:
                raise SingletonKeyError(f"its arguments do not fit: missing a required argument: {one.name!r}")
        return bound


def wrong_name(name: str, signature: Signature) -> str:
    """Return what is wrong with the name of an argument, or the empty string."""
    names = list(signature.parameters)
    if name in names or (var_keyword(signature) and name.isidentifier()):
        return ""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    takes = f"it takes {', '.join(names)}" if names else "it takes none"
    return f"{name!r}, which is no argument of the task ({takes})" + (f": did you mean {close[0]!r}?" if close else "")


def var_keyword(signature: Signature) -> str:
    """Return the name of the `**kwargs` of a signature, or the empty string."""
    return next((one.name for one in signature.parameters.values() if one.kind is Parameter.VAR_KEYWORD), "")
