"""The database of Django's settings for the plugin, and fencing over Django's own connection.

In `settings.py`: `CELERY_HIGHLANDER_ENGINE = "celery_highlander.contrib.django:engine"`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, create_engine
from sqlalchemy.pool import NullPool

from celery_highlander.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from celery_highlander.worker.leadership import Leadership

_NOT_OF_LIBPQ = ("pool", "server_side_binding", "isolation_level", "assume_role", "cursor_factory")


def engine(using: str = "default") -> Engine:
    """Return an engine for the database alias `using` of Django's settings: of its own, without a pool.

    Raises:
        ConfigurationError: there is no such alias, or it is not a PostgreSQL.
    """
    from django.conf import settings  # noqa: PLC0415  # the application's

    known: dict[str, dict[str, Any]] = settings.DATABASES
    if using not in known:
        raise ConfigurationError(f"DATABASES has no alias {using!r}.", f"It has: {', '.join(map(repr, known))}.")
    database = known[using]
    backend = str(database.get("ENGINE", ""))
    if not backend.endswith(("postgresql", "postgis")):  # those that wrap Django's own end the same
        raise ConfigurationError(
            f"DATABASES[{using!r}] is of the backend {backend!r}, and the lock is a PostgreSQL one.",
            "Set CELERY_HIGHLANDER_URL to a PostgreSQL, or name the alias of one.",
        )
    options = dict(database.get("OPTIONS") or {})
    arguments = {key: value for key, value in options.items() if key not in _NOT_OF_LIBPQ and value is not None}
    url = URL.create(
        f"postgresql+{_driver()}",
        username=database.get("USER") or None,
        password=database.get("PASSWORD") or None,
        host=database.get("HOST") or None,
        port=int(database["PORT"]) if database.get("PORT") else None,
        database=database.get("NAME") or None,
    )
    return create_engine(url, connect_args=arguments, poolclass=NullPool)


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
