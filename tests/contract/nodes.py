"""A node's lock session for contract tests: set up as the keeper does it, driven by hand."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

from celery_highlander.election.keys import lock_key
from celery_highlander.election.lease import Timing
from celery_highlander.election.protocol import Begun, Predecessor
from celery_highlander.keeper.session import Notifications
from celery_highlander.store import connecting, migrations
from celery_highlander.store.terms import Identity, Terms, application_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection
    from typing_extensions import Self

TIMING = Timing()
LIMIT = 30.0


@dataclass
class Node:
    """One node with one lock session; `lose` ends the session as a crash does."""

    url: str
    names: tuple[str, ...] = ("ledger",)
    node: str = "n1"
    namespace: str = "shop"
    schema: str = ""
    lease: float = TIMING.lease
    eligible: bool = True

    def __enter__(self) -> Self:
        self.connection: Connection = connecting.open_connection(
            connecting.Target(self.url, {}),
            application_name(self.namespace, self.node, 0, eligible=self.eligible),
            TIMING,
        )
        self.server = connecting.check_server(self.connection)
        migrations.ensure(self.connection, self.schema, may_migrate=True)
        connecting.guard_session(self.connection, Timing(lease=self.lease))
        self.keys = {name: lock_key(self.namespace, name) for name in self.names}
        self.terms = Terms(self.connection, self.server, self.keys, self.namespace, self.schema, self.lease)
        self.notifications = Notifications(self.driver)
        self.terms.listen()
        self.terms.enrol(self.who, "0.1.0")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.lose()

    def lose(self) -> None:
        with suppress(DBAPIError):
            self.connection.close()

    @property
    def driver(self) -> Any:
        return self.connection.connection.driver_connection

    @property
    def who(self) -> Identity:
        return Identity(self.node, f"{self.node}@arena", 4711)

    def try_locks(self, *names: str) -> set[str]:
        """Which of the locks of `names` it got."""
        wanted = names or self.names
        return {row.name for row in self.terms.poll(wanted, frozenset(wanted)) if row.granted}

    def begin(self, name: str = "ledger") -> Begun:
        """Begin a term of `name`, whose lock it has."""
        outcome = self.terms.begin([name], self.who, 1.5)[name]
        assert isinstance(outcome, Begun)
        assert outcome.sent_at == 1.5
        return outcome

    def lead(self, name: str = "ledger") -> Begun:
        """Get the lock of `name`, and begin a term."""
        assert self.try_locks(name) == {name}
        return self.begin(name)

    def follow(self, name: str = "ledger") -> Predecessor:
        """As `lead`; the predecessor."""
        predecessor = self.lead(name).predecessor
        assert predecessor is not None
        return predecessor

    def heartbeat(self, terms: dict[str, int], acting: Iterable[str] = ()) -> None:
        self.terms.heartbeat(terms, frozenset(acting))

    def was_notified(self) -> bool:
        return self.notifications.take()
