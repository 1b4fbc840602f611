"""The database of Django's settings for the plugin, and fencing over Django's own connection.

In `settings.py`: `CELERY_HIGHLANDER_ENGINE = "celery_highlander.contrib.django:engine"`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, create_engine
from sqlalchemy.pool import NullPool

from celery_highlander.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

    from celery_highlander.worker.leadership import Leadership

_OF_PSYCOPG = ("autocommit", "connection_factory", "context", "cursor_factory", "prepare_threshold", "row_factory")
"""Arguments of `connect()` that make another connection or cursor of it; all others are libpq's."""


def engine(using: str = "default") -> Engine:
    """Return an engine for the database alias `using` of Django's settings: of its own, without a pool.

    It connects with what Django itself would connect with (service files, `sslmode`, several hosts, passwords that a
    backend fetches), but over a connection of its own.

    Raises:
        ConfigurationError: there is no such alias, Django cannot use it, or it is not a PostgreSQL.
    """
    parameters = _parameters(using)
    shown = {name: str(parameters.get(name) or "") for name in ("user", "host", "port", "dbname")}
    plain = not set("/,") & set(shown["host"] + shown["port"])  # neither a socket's directory nor several hosts
    url = URL.create(
        f"postgresql+{_driver()}",
        username=shown["user"] or None,
        host=(plain and shown["host"]) or None,
        port=int(shown["port"]) if plain and shown["host"] and shown["port"].isdigit() else None,
        database=shown["dbname"] or None,
    )
    return create_engine(url, connect_args=parameters, poolclass=NullPool)


def _parameters(using: str) -> dict[str, Any]:
    """What Django would connect to `using` with, as far as it is libpq's."""
    from django.core.exceptions import ImproperlyConfigured  # noqa: PLC0415  # the application's
    from django.db import connections  # noqa: PLC0415  # the application's

    known = connections.databases
    if using not in known:
        raise ConfigurationError(f"DATABASES has no alias {using!r}.", f"It has: {', '.join(map(repr, known))}.")
    backend = known[using]["ENGINE"]
    try:
        wrapper = connections[using]  # connects to nothing yet
        if wrapper.vendor != "postgresql":  # whatever the backend is called: many wrap Django's own
            raise ConfigurationError(
                f"DATABASES[{using!r}] is of the backend {backend!r}, and the lock is a PostgreSQL one.",
                "Set CELERY_HIGHLANDER_URL to a PostgreSQL, or name the alias of one.",
            )
        given = wrapper.get_connection_params()
    except ImproperlyConfigured as error:
        raise ConfigurationError(
            f"Django cannot use DATABASES[{using!r}], of the backend {backend!r}: {' '.join(str(error).split())}",
            f"Mend it until `manage.py check --database {using}` passes.",
        ) from error
    found = {name: value for name, value in given.items() if name not in _OF_PSYCOPG and value is not None}
    return {**found, **_role(known[using].get("OPTIONS") or {}, str(found.get("options", "")))}


def _role(options: Mapping[str, Any], further: str) -> dict[str, str]:
    """Django sends `set role` once it is connected; the server can be told at the start too."""
    role = options.get("assume_role")
    if not role:
        return {}
    escaped = str(role).replace("\\", "\\\\").replace(" ", "\\ ")
    return {"options": f"{further} -c role={escaped}".strip()}


def fence(leadership: Leadership, using: str = "default") -> None:
    """Tie the present transaction of Django's connection `using` to a term; see `celery_highlander.fence`.

    Call it within `transaction.atomic()`. The tables of the plugin have to be in that database.

    Raises:
        StaleTermError: the term is over.
        ConfigurationError: there is no transaction.
    """
    from django.db import connections  # noqa: PLC0415  # the application's

    connection = connections[using]
    if not connection.in_atomic_block:
        raise ConfigurationError(
            "fence() outside of a transaction guards nothing.", "Call it within django.db.transaction.atomic()."
        )
    with connection.cursor() as cursor:
        leadership.fence_cursor(cursor)


def _driver() -> str:
    """The driver that Django itself uses: psycopg 3 where that is installed."""
    try:
        from django.db.backends.postgresql.psycopg_any import is_psycopg3  # noqa: PLC0415  # from Django 4.2 on
    except ImportError:
        return "psycopg2"
    return "psycopg" if is_psycopg3 else "psycopg2"
