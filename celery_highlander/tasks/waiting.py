"""At most one message waits for a key: asked before one is sent, and told when it waits no more.

Processes of a worker ask their keeper. All others, a web server for instance, have a small pool of connections of their
own: no lock hangs on those, so any connection will do.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any

from celery import signals

from celery_highlander.errors import DatabaseUnavailableError, HighlanderError, SchemaError
from celery_highlander.keeper.children import ADDRESS_VARIABLE
from celery_highlander.store import connecting, sa, waiting
from celery_highlander.store.migrations import RUN_RIGHTS, ensure, ensure_rights
from celery_highlander.tasks.client import client_for
from celery_highlander.worker.highlander import Highlander

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery
    from sqlalchemy import Connection, Engine

    from celery_highlander.config import Settings
    from celery_highlander.store.waiting import Row, Waiting

_engines: dict[tuple[int, int], Engine] = {}  # by process and app: a fork must not use its parent's connections
_lock = threading.Lock()


def claim(app: Celery, message: Waiting) -> Row | None:
    """Record a message that is about to be sent; return what waits already, in which case nothing is recorded.

    Raises:
        DatabaseUnavailableError: nobody can say.
        HighlanderError: the settings or the tables cannot be used.
    """
    if os.environ.get(ADDRESS_VARIABLE):
        return client_for(app).claim(message)
    with connected(app) as (connection, schema):
        return waiting.claim(connection, schema, message)


def forget(app: Celery, task_id: str, *, wait: bool = False) -> None:
    """Free the row of a message that waits no more; if the database is away, the sweep does it.

    Args:
        app: the app.
        task_id: of the message.
        wait: in a worker, until it is free.
    """
    if os.environ.get(ADDRESS_VARIABLE):
        with contextlib.suppress(HighlanderError):
            client_for(app).forget(task_id, wait=wait)
        return
    with contextlib.suppress(DatabaseUnavailableError, SchemaError), connected(app) as (connection, schema):
        waiting.forget(connection, schema, [task_id])


@contextlib.contextmanager
def connected(app: Celery) -> Iterator[tuple[Connection, str]]:
    """A connection for the block, and the schema.

    Raises:
        HighlanderError: the settings are wrong, the tables may not be used, or the database is away.
    """
    highlander = Highlander.installed_in(app)
    settings = highlander.known_settings()
    target = highlander.target(settings)
    try:
        with _engine(app, target, settings).connect() as connection:
            yield connection, settings.schema
    except sa.SQLAlchemyError as error:
        reason = connecting.plain(error, target)
        raise DatabaseUnavailableError(f"the database cannot be asked what waits: {reason}.") from None


def let_go(app: Celery) -> None:
    """Close this process's idle connections."""
    engine = _engines.get((os.getpid(), id(app)))
    if engine is not None:
        engine.dispose()


def _engine(app: Celery, target: connecting.Target, settings: Settings) -> Engine:
    place = os.getpid(), id(app)
    with _lock:
        engine = _engines.get(place)
        if engine is None:
            engine = sa.create_engine(
                connecting.parse_url(target.url),
                isolation_level="AUTOCOMMIT",
                connect_args={"connect_timeout": connecting.CONNECT_TIMEOUT, **target.connect_args},
                hide_parameters=True,
                pool_size=2,
                max_overflow=20,
                pool_timeout=5,
                pool_recycle=300,
                pool_pre_ping=True,
            )
            with engine.connect() as connection:
                ensure(connection, settings.schema, may_migrate=settings.migrate)
                ensure_rights(connection, settings.schema, RUN_RIGHTS)
            _engines[place] = engine
        return engine


# -- what a worker is told of messages that never came to a run, or whose run was killed -------------------------------


@signals.task_revoked.connect(weak=False)
def _revoked(sender: Any = None, request: Any = None, **_: Any) -> None:
    _over(sender, getattr(request, "id", None))


@signals.task_failure.connect(weak=False)
def _failed(sender: Any = None, task_id: str | None = None, **_: Any) -> None:
    _over(sender, task_id)


def _over(task: Any, task_id: str | None) -> None:
    waits_alone = getattr(task, "waits_alone", None)
    if task_id and waits_alone is not None and waits_alone():
        forget(task.app, task_id)
