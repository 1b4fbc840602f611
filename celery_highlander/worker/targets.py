"""Where to connect to, taken from a SQLAlchemy engine of the application: its arguments, never its pool."""

from __future__ import annotations

import importlib
import json
import threading
from typing import Any

from celery_highlander.config import check_url
from celery_highlander.errors import ConfigurationError, DatabaseUnavailableError, HighlanderError
from celery_highlander.store import sa
from celery_highlander.store.connecting import Target


class _ArgumentsSeen(Exception):  # noqa: N818  # no error: it stops the engine just before it connects
    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments
        super().__init__()


def target_of_engine(engine: sa.Engine) -> Target:
    """Return URL and connect arguments of `engine`, after its own `do_connect` listeners (rotating passwords).

    Raises:
        ConfigurationError: the engine makes its connections in a way that cannot be repeated elsewhere.
    """
    problems = check_url(engine.url.drivername + "://")
    if problems:
        raise ConfigurationError(problems[0].replace("highlander_url", "the URL of the engine for highlander"))

    here = threading.get_ident()

    def stop(dialect: object, record: object, arguments: object, keywords: dict[str, Any]) -> None:
        if threading.get_ident() == here:  # the application's other threads may be connecting meanwhile
            raise _ArgumentsSeen(dict(keywords))

    sa.event.listen(engine, "do_connect", stop)  # the last one in line
    try:
        engine.pool.recreate().connect().close()
    except _ArgumentsSeen as seen:
        arguments = seen.arguments
        arguments.pop("context", None)  # SQLAlchemy's adapters for psycopg 3: the keeper's own engine has its own
    else:
        raise ConfigurationError(
            "the engine for highlander creates its connections itself (creator=…, or a do_connect that connects).",
            "Give highlander_url, or an engine made from a URL and connect_args.",
        )
    finally:
        sa.event.remove(engine, "do_connect", stop)
    try:
        arguments = json.loads(json.dumps(arguments))
    except TypeError as error:
        raise ConfigurationError(f"the engine's connect arguments cannot be passed on to the keeper: {error}") from None
    return Target(engine.url.render_as_string(hide_password=False), arguments)


def target_of_path(path: str) -> Target:
    """Return the target of the engine that the function at the dotted path `path` returns.

    Raises:
        ConfigurationError: there is no such function, or it returns something else.
        DatabaseUnavailableError: it raised; another try may go better (a vault that does not answer).
    """
    module, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"highlander_engine = {path!r} cannot be imported: {error}") from error
    try:
        engine = function()
    except HighlanderError:
        raise  # it knows what is wrong: a mistake in the settings is refused at once, not tried again and again
    except (sa.ArgumentError, ValueError) as error:  # may quote the URL, password and all
        raise ConfigurationError(f"highlander_engine = {path!r} raised {type(error).__name__}") from None
    except Exception as error:
        told = f"highlander_engine = {path!r} raised {type(error).__name__}: {error}"
        raise DatabaseUnavailableError(told) from error
    if not isinstance(engine, sa.Engine):
        raise ConfigurationError(
            f"highlander_engine = {path!r} returned a {type(engine).__name__}, not a SQLAlchemy Engine"
        )
    return target_of_engine(engine)
