"""What an operator has done to the cluster: each order is written, told to the nodes, and waited for."""

from __future__ import annotations

import contextlib
import difflib
import getpass
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

from celery_highlander.config import BEAT
from celery_highlander.errors import RefusedError, SchemaError
from celery_highlander.store import connecting, history, migrations, nodes, orders, status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sqlalchemy import Connection
    from typing_extensions import Self

    from celery_highlander.store.history import PastTerm
    from celery_highlander.store.nodes import NodeStatus
    from celery_highlander.store.status import SingletonStatus
    from celery_highlander.worker.highlander import Highlander

POLL_INTERVAL = 0.05
"""Seconds between two looks at the tables, while an order is being carried out."""

TIMEOUT = 20.0
"""Seconds that a command waits for its order to be carried out, where nothing else is asked for."""

_SPARE = 2.0


@dataclass(frozen=True, slots=True)
class Result:
    """What came of an order.

    Attributes:
        done: it has been carried out.
        lines: what to tell.
        facts: the same as plain values.
    """

    done: bool
    lines: list[str]
    facts: dict[str, Any] = field(default_factory=dict)


class Operator:
    """One operator, over one connection; a context manager.

    Args:
        plugin: the plugin of the app.
        timeout: seconds to wait for an order to be carried out; None for as long as it should take.
        reason: why, for logs and the history.
        writes: whether anything will be asked for, or only read.

    Raises:
        DatabaseUnavailableError: the server does not answer.
        SchemaError: the tables are not there, too old, or the role may not use them.
    """

    def __init__(
        self, plugin: Highlander, timeout: float | None = None, reason: str = "", *, writes: bool = True
    ) -> None:
        self._settings = plugin.settings()
        self._target = plugin.target(self._settings)
        self._keys = plugin.keys(self._settings)
        self._alone = {} if BEAT in self._keys else {BEAT: plugin.beat_key(self._settings)}
        self._timeout = timeout
        self._reason = reason
        self._writes = writes

    @property
    def namespace(self) -> str:
        """Whose singletons these are."""
        return self._settings.namespace

    def __enter__(self) -> Self:
        name = f"highlander-operator {self.namespace}"
        self._connection: Connection = connecting.open_connection(self._target, name)
        try:
            with self._asking():
                self._check()
        except BaseException:
            self._connection.close()
            raise
        self._book = orders.OrderBook(self._connection, self.namespace, self._settings.schema, _me(), self._reason)
        return self

    def __exit__(self, *exception: object) -> None:
        self._connection.close()

    def _check(self) -> None:
        schema = self._settings.schema
        version = migrations.version_of(self._connection, schema)
        if not version:
            raise status.no_tables(schema)
        if version < orders.ORDER_VERSION:
            raise SchemaError(
                f"the tables {migrations.prefix(schema)}* are of version {version}, and this needs "
                f"{orders.ORDER_VERSION}.",
                "Run `celery -A proj highlander migrate` with a role that may create tables.",
            )
        if self._writes:
            migrations.ensure_rights(self._connection, schema, migrations.ORDER_RIGHTS)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """The block talks to the server, which has to answer."""
        try:
            with connecting.patience(self._connection):
                yield
        except DBAPIError as error:
            told = connecting.without_password(str(error.orig), self._target)
            if any(
                words in told for words in ("permission denied to terminate", "must be a member", "must be a super")
            ):
                cure = "Run this as the role of the workers, or: grant pg_signal_backend to <role>;"
                raise SchemaError(f"the role may not end that session: {told}.", cure) from None
            if "permission denied" in told:
                names = ", ".join(f"{migrations.prefix(self._settings.schema)}{t}" for t in status.READ_TABLES)
                raise SchemaError(
                    f"the role may not read the tables: {told}.", f"grant select on {names} to <role>;"
                ) from None
            raise connecting.unanswered(error, self._target) from None

    # -- looking -------------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, SingletonStatus]:
        """Return who leads what."""
        with self._asking():
            found = status.read_with(self._connection, self.namespace, self._settings.schema, self._keys, self._alone)
        return {entry.name: entry for entry in found}

    def nodes(self) -> list[NodeStatus]:
        """Return who takes part."""
        with self._asking():
            return nodes.read(self._connection, self.namespace, self._settings.schema)

    def history(self, names: list[str], limit: int) -> list[PastTerm]:
        """Return the newest `limit` terms of each of `names`, or of every singleton."""
        keys: Mapping[str, int] = {**self._keys, **self._alone}
        if names:
            keys = {name: keys[self.known(name)] for name in names}
        with self._asking():
            return history.read(self._connection, self._settings.schema, keys, limit)

    def known(self, name: str) -> str:
        """Return `name`, which has to be a singleton's.

        Raises:
            RefusedError: there is none of that name.
        """
        names = [*self._keys, *self._alone]
        if name in names:
            return name
        close = difflib.get_close_matches(name, names, n=1)
        guess = f"Did you mean {close[0]!r}? " if close else ""
        listed = ", ".join(map(repr, self._keys)) or "none"
        raise RefusedError(
            f"there is no singleton {name!r} in the namespace {self.namespace!r}.", f"{guess}There is: {listed}."
        )

    def node(self, word: str) -> NodeStatus:
        """Return the node that is meant by `word`: the name of a worker, or the beginning of a node's uuid.

        Raises:
            RefusedError: there is none, or more than one.
        """
        found = self.nodes()
        meant = [node for node in found if node.worker == word] or [node for node in found if node.goes_by(word)]
        if len(meant) == 1:
            return meant[0]
        listed = ", ".join(f"{node.worker or '?'} ({node.node})" for node in meant or found) or "none at all"
        problem = f"{len(meant)} nodes go by" if meant else "no node goes by"
        close = difflib.get_close_matches(word, [node.worker or "" for node in found], n=1)
        guess = f"Did you mean {close[0]!r}? " if close and not meant else ""
        raise RefusedError(f"{problem} {word!r}.", f"{guess}Connected: {listed}.")

    # -- orders --------------------------------------------------------------------------------------------------------

    def pause(self, names: list[str], *, everything: bool, patient: bool) -> Result:
        """Have nobody lead `names`; wait until nobody does."""
        targets = [""] if everything else [self.known(name) for name in names]
        before = self.status()
        with self._asking():
            self._book.pause(targets, patient=patient)
        meant = list(before) if everything else targets
        after = self._wait(lambda now: all(now[n].state == "paused" for n in meant if n in now))
        left = [after[name] for name in meant if name in after and after[name].state != "paused"]
        lines = [_paused_line(name, before.get(name)) for name in meant if after.get(name) not in left]
        lines += [
            f"{entry.name} is paused, and {entry.worker or 'somebody'} still has it: running tasks may finish. "
            "With --now they are killed."
            for entry in left
        ]
        if everything:
            lines.append(f"Everything in the namespace {self.namespace!r} is paused, also what is declared later.")
        facts = {"paused": meant, "everything": everything, "still_led": [entry.name for entry in left]}
        return Result(not left, lines, facts)

    def resume(self, names: list[str], *, everything: bool) -> Result:
        """Let `names` be led again; wait until they are."""
        meant = [self.known(name) for name in names]
        before = self.status()
        with self._asking():
            everything_is = any(order.pauses("") for order in orders.read(self._connection, *self._place))
        if not everything and everything_is:
            raise RefusedError("everything is paused, not single singletons.", "`resume --all` ends that.")
        with self._asking():
            gone = self._book.resume(None if everything else meant)
        meant = [name for name, entry in before.items() if entry.paused] if everything else meant
        if not gone:
            return Result(True, ["Nothing was paused."], {"resumed": [], "leaders": {}})
        after = self._wait(lambda now: all(now[n].state == "leading" for n in meant if n in now))
        lines = [_resumed_line(after[name]) for name in meant if name in after]
        leaders = {name: after[name].worker for name in meant if name in after}
        return Result(all(leaders.values()), lines, {"resumed": meant, "leaders": leaders})

    def step_down(self, name: str, to: str | None, *, patient: bool) -> Result:
        """Have the present term of `name` end, and another node, or `to`, take over; wait for that."""
        self.known(name)
        before = self.status().get(name)
        if before is None or before.token is None or before.state not in ("leading", "waiting", "silent"):
            state = f", it is {before.state}" if before is not None else ""
            raise RefusedError(f"nobody leads {name!r}{state}.", "There is no term to step down from.")
        heir = self._heir(name, to) if to is not None else None
        if heir is not None and heir.node == before.node:
            line = f"{name} is led by {before.worker} already (token {before.token})."
            return Result(True, [line], {"name": name, "from": before.worker, "to": before.worker})
        others = [n for n in self.nodes() if n.eligible and n.node != before.node and (not n.alone or name == BEAT)]
        with self._asking():
            self._book.step_down(name, before.token, heir.worker if heir else None, patient=patient)
        old = before.token

        def taken_over(now: dict[str, SingletonStatus]) -> bool:
            entry = now[name]
            return entry.state == "leading" and entry.token != old

        after = self._wait(taken_over)[name]
        facts = {"name": name, "from": before.worker, "to": after.worker, "token": after.token, "takeover": None}
        if after.token == old:
            line = f"{name} is still with {before.worker}: running tasks may finish. With --now they are killed."
            return Result(False, [line], {**facts, "to": None})
        if after.state != "leading":
            return Result(False, [f"{before.worker} stepped down from {name}, and nobody has taken over yet."], facts)
        gap = next((term.gap for term in self.history([name], 2) if term.token == after.token), None)
        took = "" if gap is None else f", after {gap * 1000:.0f} ms"
        lines = [f"{before.worker} stepped down from {name}; {after.worker} leads it{took} (token {after.token})."]
        if not others:
            lines.append("There is no other node that could lead it: it went back to the same one.")
        done = heir is None or after.node == heir.node
        if heir is not None and not done:
            lines.append(f"{heir.worker} did not take it in time.")
        return Result(done, lines, {**facts, "takeover": gap})

    def drain(self, word: str, *, patient: bool) -> Result:
        """Have a node lead nothing any more; wait until it does not."""
        node = self.node(word)
        had = [entry.name for entry in self.status().values() if entry.node == node.node]
        with self._asking():
            self._book.drain(node.node, patient=patient)
        after = self._wait(
            lambda now: (
                all(entry.node != node.node for entry in now.values())
                and all(now[name].state == "leading" for name in had if name in now)
            )
        )
        left = [entry.name for entry in after.values() if entry.node == node.node]
        shown = node.worker or node.node
        lines = [f"{shown} is drained: it leads nothing until it is started again, or `drain --off {shown}`."]
        lines += [f"  {name}: {_leader(after.get(name))}" for name in had if name not in left]
        if left:
            lines = [f"{shown} still leads {', '.join(left)}: running tasks may finish. With --now they are killed."]
        leaders = {name: after[name].worker for name in had if name in after}
        return Result(not left, lines, {"node": node.node, "worker": node.worker, "leaders": leaders, "left": left})

    def undrain(self, word: str) -> Result:
        """Let a node lead again."""
        node = self.node(word)
        with self._asking():
            gone = self._book.undrain(node.node)
        shown = node.worker or node.node
        line = f"{shown} may lead again." if gone else f"{shown} was not drained."
        return Result(True, [line], {"node": node.node, "worker": node.worker})

    def prefer(self, name: str, word: str | None) -> Result:
        """Have `name` belong to a worker, or with None to nobody."""
        self.known(name)
        if word is None:
            with self._asking():
                gone = self._book.prefer_nobody(name)
            line = f"Any node may lead {name}." if gone else f"No node was preferred for {name}."
            return Result(True, [line], {"name": name, "preferred": None})
        connected = any(node.worker == word for node in self.nodes())
        with self._asking():
            self._book.prefer(name, word)
        lines = [f"{name} belongs to {word}, as long as that takes part."]
        if not connected:
            lines.append(f"No node goes by {word!r} at present: until one does, any may lead it.")
        return Result(True, lines, {"name": name, "preferred": word})

    def fence(self, name: str) -> Result:
        """End the lock session that holds `name`, and wait for the next term."""
        key = {**self._keys, **self._alone}[self.known(name)]
        before = self.status().get(name)
        with self._asking():
            backend = orders.fence(self._connection, key)
        if backend is None:
            raise RefusedError(f"nobody holds the lock of {name!r}.", "There is no session to end.")
        old = before.token if before else None
        after = self._wait(lambda now: now[name].state == "leading" and now[name].token != old).get(name)
        was = f" of {before.worker}" if before and before.worker else ""
        lines = [f"The lock session{was} (backend {backend}) is ended: all that it led is lost, and stops."]
        taken = after is not None and after.state == "leading" and after.token != old
        lines.append(f"  {name}: {_leader(after) if taken else 'nobody leads it yet'}")
        facts = {"name": name, "backend": backend, "from": before.worker if before else None}
        return Result(taken, lines, {**facts, "to": after.worker if taken and after else None})

    # -- helpers -------------------------------------------------------------------------------------------------------

    @property
    def _place(self) -> tuple[str, str]:
        return self.namespace, self._settings.schema

    def _heir(self, name: str, to: str) -> NodeStatus:
        node = self.node(to)
        if not node.eligible:
            why = "it is drained" if node.drained else "it is not eligible, or about to leave"
            raise RefusedError(f"{to} cannot lead {name!r}: {why}.", "")
        if node.alone and name != BEAT:
            raise RefusedError(f"{to} cannot lead {name!r}: it is a beat, which leads nothing else.", "")
        return node

    def _wait(self, done: Callable[[dict[str, SingletonStatus]], bool]) -> dict[str, SingletonStatus]:
        """Look until it is done, or the time is over; return the last look."""
        patience = TIMEOUT + self._settings.lease_duration if self._timeout is None else self._timeout
        deadline = time.monotonic() + patience
        while True:
            now = self.status()
            if done(now) or time.monotonic() >= deadline:
                return now
            time.sleep(POLL_INTERVAL)


def _me() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user often has no name
        user = "somebody"
    return f"{user}@{socket.gethostname()}"


def _paused_line(name: str, before: SingletonStatus | None) -> str:
    if before is None or before.worker is None:
        return f"{name} is paused; nobody led it."
    return f"{name} is paused; {before.worker} has stepped down (token {before.token})."


def _resumed_line(entry: SingletonStatus) -> str:
    if entry.state == "leading":
        return f"{entry.name} is resumed; {_leader(entry)}."
    return f"{entry.name} is resumed, and nobody leads it yet; is there a node that may?"


def _leader(entry: SingletonStatus | None) -> str:
    if entry is None or entry.state != "leading":
        return "nobody leads it yet"
    return f"{entry.worker} leads it (token {entry.token})"
