"""`RealKeeper`: what `FakeKeeper` does, by a real keeper process and a real PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from celery_highlander.election.node import Mark
from celery_highlander.election.protocol import Begun
from celery_highlander.errors import DatabaseUnavailableError, HighlanderError
from celery_highlander.keeper.children import ADDRESS_VARIABLE
from celery_highlander.store import migrations
from celery_highlander.store.connecting import Target, check_server, parse_url, plain
from celery_highlander.store.terms import Identity, Terms
from celery_highlander.tasks import client
from celery_highlander.testing.runs import want_of
from celery_highlander.testing.terms import PATIENCE, Term
from celery_highlander.worker.highlander import Highlander
from celery_highlander.worker.leadership import TermInfo
from celery_highlander.worker.link import KeeperLink, LinkPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from celery import Celery
    from sqlalchemy import Connection
    from typing_extensions import Self

    from celery_highlander.tasks.singleton import SingletonTask

_FIRST = "before-the-test"
_LOOK = 0.01  # seconds between two looks at the keeper


class _ThreadWork:
    """The work of one singleton, as the link sees it; called on the link's thread."""

    def __init__(self) -> None:
        self.token = 0
        self.term: Term | None = None
        self._kill_at: float | None = None
        self._stopping = False

    def start(self, token: int, elected_at: float) -> None:
        self._kill_at, self._stopping, self.term = None, False, None
        self.elected_at = elected_at
        self.token = token

    def stop(self, reason: str, kill_at: float | None, *, hung: bool) -> None:
        self._kill_at, self._stopping = kill_at, True
        if self.term is not None:
            self.term._tell()

    def tend(self, now: float) -> None: ...

    def is_over(self, now: float) -> bool:
        return self.term is None or self.term._is_over(self._kill_at)


class RealKeeper:
    """A real keeper beside the test process, for as long as the `with` block lasts; needs no worker and no broker.

    The app gets a namespace of its own meanwhile, so that tests may share a database. Work runs in threads of the test
    process, hence it cannot be killed: if it goes on for too long it is a `StillRunningError`.

    Args:
        app: the plugin is installed in it; its singletons can be elected.
        url: the database, if it is another one than the app's.
    """

    def __init__(self, app: Celery, url: str | None = None) -> None:
        self._app = app
        self._highlander = Highlander.installed_in(app)
        self._url = url
        self._stack = contextlib.ExitStack()
        self._reason_away = ""
        self._terms: dict[str, Term] = {}
        self._led: frozenset[str] = frozenset()  # as everybody has been told
        self._holder: client.RunClient | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _start(self) -> None:
        put, highlander = self._stack.enter_context, self._highlander
        namespace = f"{highlander.settings().namespace}-test-{os.getpid()}"
        put(_set(self._app, highlander_namespace=namespace, **({"highlander_url": self._url} if self._url else {})))
        put(mock.patch.object(highlander, "_known", None))
        put(mock.patch.multiple(client, _client=None, _pid=0, _deadly=False))
        put(mock.patch.dict(os.environ))
        settings = replace(highlander.settings(), on_stuck="continue", eligible=True)
        self._settings = settings
        keys = highlander.keys(settings)
        self._works = {name: _ThreadWork() for name in keys}
        self._lead_once(keys)
        plan = LinkPlan(
            settings=settings,
            keys=keys,
            worker=f"{Path(sys.argv[0]).name or 'python'}-{os.getpid()}",
            processes={},
            load={},
            target=self._target,
            target_changes=True,
        )
        self._link = KeeperLink(plan, None)
        self._link.announce = self._announce
        self._link.works.update(self._works)
        self._link.start(PATIENCE)
        self._stack.callback(self._finish)
        self._wait(lambda: self._link.snapshot.connected, "the lock session")

    def __exit__(self, *exc_info: object) -> None:
        terms = list(self._terms.values())
        self._stack.close()
        if exc_info[0] is None:
            for term in terms:
                term.check()

    def _finish(self) -> None:
        """End the keeper, and what a worker leaves to the end of its process."""
        link = self._link
        link.finish(self._settings.lease_duration)
        for end in (link._wake_in, link._wake_out):
            end.close()
        for asking in (self._holder, client._client):
            if asking is None:
                continue
            watch = asking._watch
            self._wait(lambda watch=watch: watch.closed, "the end of the keeper")  # type: ignore[misc]
            for connection in (*asking._free, watch._wake_in, watch._wake_out):
                connection.close()

    def _announce(self, tell: Callable[[], object]) -> None:
        tell()
        self._led = frozenset(self._link.snapshot.since)

    def _target(self) -> Target:
        if self._reason_away:
            raise DatabaseUnavailableError(self._reason_away)
        return self._highlander.target(self._settings)

    # -- elections -----------------------------------------------------------------------------------------------------

    def elect(self, name: str) -> Term:
        """Win the election of `name`; returns when this node leads it.

        Raises:
            DatabaseUnavailableError: the database is away.
            HighlanderError: this node leads it already, or there is no such singleton.
        """
        work = self._works.get(name)
        if work is None:
            raise HighlanderError(f"the app has no singleton {name!r}: it has {', '.join(self._works)}.")
        if self._reason_away:
            raise DatabaseUnavailableError(f"nobody is elected: {self._reason_away}.")
        if name in self._terms and not self._has_ended(self._terms[name]):
            raise HighlanderError(f"{name!r} has a leader already.", "There can be only one: end its term first.")
        before = work.token
        self._link.campaign([name])
        self._wait(lambda: work.token != before and name in self._led, f"the election of {name!r}")
        margin, schema = self._settings.kill_margin, self._settings.schema
        info = TermInfo(name, work.token, work.elected_at, self._settings.namespace, schema, margin)
        work.term = self._terms[name] = Term(info, self._link.cell, self._end)
        return work.term

    def lose_session(self, reason: str = "the test took the lock session away") -> None:
        """Have the server end the lock session; returns when all terms have ended, and there is another session.

        Raises:
            StillRunningError: a worker would have killed some work.
        """
        try:
            self.lose_database(reason)
        finally:
            self.restore_database()

    def lose_database(self, reason: str = "the test took the database away") -> None:
        """Have the server end the lock session, and let the keeper get no other one until `restore_database()`.

        Raises:
            StillRunningError: a worker would have killed some work.
        """
        self._reason_away = reason
        sql = "select pg_terminate_backend(pid) from pg_stat_activity where application_name like :name"
        with self._connected() as connection:
            connection.execute(text(sql), {"name": f"highlander % {self._link.node} %"}).all()
        self._wait(lambda: not self._link.snapshot.connected, "the keeper to be without a lock session")
        terms = list(self._terms.values())
        for term in terms:
            self._wait(lambda term=term: self._has_ended(term), f"the end of {term!r}")  # type: ignore[misc]
        self._link.withdraw([term.name for term in terms], reason)  # none is led again unless the test says so
        for term in terms:
            term.check()

    def restore_database(self) -> None:
        """Let the keeper reach the database again; returns when it has a lock session."""
        self._reason_away = ""
        self._wait(lambda: self._link.snapshot.connected, "the lock session")

    def _end(self, term: Term, reason: str) -> None:
        self._link.withdraw([term.name], reason)
        self._wait(lambda: self._has_ended(term), f"the end of {term!r}")

    def _has_ended(self, term: Term) -> bool:
        """Whether everybody has been told of its end, or it waits for work that a worker would have killed."""
        if term._killed_at is None and term.name in self._led:
            return False
        term.has_ended = True
        return True

    def _lead_once(self, keys: Mapping[str, int]) -> None:
        """Give each singleton a first term that ended well: else the next one would wait for a whole lease."""
        settings, names = self._settings, [*keys]
        with self._connected() as connection:
            migrations.ensure(connection, settings.schema, may_migrate=settings.migrate)
            server = check_server(connection)
            terms = Terms(connection, server, keys, settings.namespace, settings.schema, settings.lease_duration)
            granted = [row.name for row in terms.poll(tuple(names), frozenset(names)) if row.granted]
            for name, begun in terms.begin(granted, Identity(_FIRST, _FIRST, os.getpid()), 0.0).items():
                terms.release(name, Mark(name, begun.token, "never acted") if isinstance(begun, Begun) else None)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Connection]:
        target = self._highlander.target(self._settings)
        url = parse_url(target.url)
        engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=target.connect_args)
        try:
            with engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise DatabaseUnavailableError(f"the database for tests cannot be used: {plain(error, target)}.") from None

    def _wait(self, ready: Callable[[], object], what: str) -> None:
        give_up_at = time.monotonic() + PATIENCE
        while not ready():
            if time.monotonic() > give_up_at:
                raise HighlanderError(f"waited {PATIENCE:g} s in vain for {what}: {self._link.snapshot}.")
            time.sleep(_LOOK)

    # -- singleton runs ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def hold(
        self,
        task: SingletonTask,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        task_id: str = "another-run",
    ) -> Iterator[str]:
        """Hold the key of a call of `task` during the block, as another run would; gives the key's text.

        Raises:
            SingletonConflictError: it is held.
            DatabaseUnavailableError: the database is away.
        """
        if self._holder is None:
            self._holder = client.RunClient(os.environ[ADDRESS_VARIABLE], deadly=False)
        want = want_of(task, args, kwargs or {}, task_id)
        try:
            with self._holder.hold(want):
                yield want.name
        finally:
            # Asked over the connection that has just given the key back, so that the answer comes after that.
            self._holder.forget(task_id, wait=True)


@contextlib.contextmanager
def _set(app: Celery, **values: Any) -> Iterator[None]:
    """Have other settings meanwhile."""
    before = {name: app.conf.get(name) for name in values}
    app.conf.update(values)
    try:
        yield
    finally:
        app.conf.update(before)
