"""SQLAlchemy, loaded when something of it is needed: most processes of an application never talk to the database.

It costs a process some 12 MiB and a tenth of a second. Workers, their pool children and beats have their keeper for
the database; whoever does open a connection of its own finds everything here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Engine, create_engine, event, text
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, DBAPIError, InvalidRequestError, ProgrammingError, SQLAlchemyError
    from sqlalchemy.pool import NullPool

_HOMES = {
    "sqlalchemy": ("Engine", "create_engine", "event", "text"),
    "sqlalchemy.engine": ("make_url",),
    "sqlalchemy.exc": ("ArgumentError", "DBAPIError", "InvalidRequestError", "ProgrammingError", "SQLAlchemyError"),
    "sqlalchemy.pool": ("NullPool",),
}

__all__ = [
    "ArgumentError",
    "DBAPIError",
    "Engine",
    "InvalidRequestError",
    "NullPool",
    "ProgrammingError",
    "SQLAlchemyError",
    "create_engine",
    "event",
    "make_url",
    "text",
]


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            value: object = getattr(importlib.import_module(home), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
