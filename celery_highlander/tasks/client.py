"""How a process asks its node's keeper for the key of a singleton run, and gives it back.

A pool child, a worker, and a singleton process ask the keeper of their worker. Any other process, one that runs tasks
eagerly for instance, gets a keeper of its own with its first run: heartbeats have to go on whatever the run does.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from celery_highlander.errors import DatabaseUnavailableError, SchemaError, SingletonConflictError
from celery_highlander.keeper.cell import LeaseCell
from celery_highlander.keeper.children import ADDRESS_VARIABLE, desk_address, join
from celery_highlander.store.waiting import Row, Waiting
from celery_highlander.tasks.alone import is_alone, start_keeper
from celery_highlander.tasks.watch import ActiveRun, RunWatch
from celery_highlander.worker import native

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

    from celery_highlander.keeper.run_table import Want

ANSWER_TIMEOUT = 10.0
"""Seconds, beyond those that a run would wait, for the keeper to answer. It does in milliseconds, or it is frozen."""

FORGET_PATIENCE = 2.0
"""Seconds that a run waits, at its end, for the row of its message to be freed."""

KEEPER_PATIENCE = 2.0
"""Seconds to wait for a keeper that is started anew."""

_CONNECT_TIMEOUT = 2.0
_RETRY_DELAY = 0.05


class _Connection:
    """A connection to the desk; for one run at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = b""

    def send(self, **message: Any) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def answer(self, type_: str, field: str, number: int, timeout: float) -> dict[str, Any]:
        """Return the answer of that type in whose `field` is `number`.

        Raises:
            OSError: the keeper is gone, or does not answer in time.
        """
        give_up_at = time.monotonic() + timeout
        while True:
            line, separator, rest = self._buffer.partition(b"\n")
            if separator:
                self._buffer = rest
                message: dict[str, Any] = json.loads(line)
                if message.get("type") == type_ and message.get(field) == number:
                    return message
                continue
            self._socket.settimeout(max(0.001, give_up_at - time.monotonic()))
            chunk = self._socket.recv(65536)
            if not chunk:
                raise ConnectionResetError("the keeper is gone")
            self._buffer += chunk

    def close(self) -> None:
        self._socket.close()


class RunClient:
    """The way of this process to one keeper."""

    def __init__(self, address: str, *, deadly: bool) -> None:
        """Connect.

        Raises:
            OSError: there is no keeper at the moment.
        """
        self._address = desk_address(address)
        self._free: list[_Connection] = []
        self._numbers = itertools.count(1)
        watching = native.unix_socket()
        descriptor = join(watching, self._address, _CONNECT_TIMEOUT)
        cell = LeaseCell(descriptor)
        os.close(descriptor)
        self._watch = RunWatch(watching, cell, deadly=deadly)

    @property
    def is_usable(self) -> bool:
        """Whether its keeper lives, as far as is known."""
        return not self._watch.closed

    @contextlib.contextmanager
    def hold(self, want: Want, *, gone_with_it: bool = False) -> Iterator[tuple[int, int | None]]:
        """Hold the key while the block runs; gives the lock key, and the fencing token if one was asked for.

        Args:
            want: what the run wants.
            gone_with_it: if this process dies, the message of the run is gone with it.

        Raises:
            SingletonConflictError: it is held by others.
            DatabaseUnavailableError: nobody can say.
            SchemaError: the tables may not be used.
            SingletonRunLostError: raised in the block when the lock is lost.
        """
        number = next(self._numbers)
        connection, answer = self._take(number, want, gone_with_it=gone_with_it)
        run = ActiveRun(number, want.name, abort=want.abort)
        try:
            self._watch.enter(run)
            if self._watch.closed:
                raise DatabaseUnavailableError("the keeper died.")
            if want.abort and self._watch.is_late:  # this process was paused between the answer and here
                raise DatabaseUnavailableError("the lease of this node has ended.")
            try:
                yield answer["key"], answer["token"]
            finally:
                run.end()  # may itself be interrupted
        finally:
            run.over = True
            self._watch.leave(run)
            self._give_back(connection, number)

    def _take(self, number: int, want: Want, *, gone_with_it: bool) -> tuple[_Connection, dict[str, Any]]:
        with self._asking() as connection:
            fields = {name: getattr(want, name) for name in want.__dataclass_fields__}  # `asdict` is slow
            connection.send(type="take", run=number, gone_with_it=gone_with_it, **fields)
            answer = connection.answer("answer", "run", number, want.wait + ANSWER_TIMEOUT)
        if answer["result"] == "held":
            return connection, answer
        self._free.append(connection)
        reason = answer["reason"]
        if answer["result"] == "busy":
            by = f", by task {reason}" if reason else ""
            raise SingletonConflictError(f"{want.name} is held{by}.", key=want.name, task_id=reason)
        if answer["result"] == "refused":
            raise SchemaError(reason)
        raise DatabaseUnavailableError(f"{want.name} cannot be locked: {reason}.")

    def claim(self, message: Waiting) -> Row | None:
        """Record a message that is about to be sent; return what waits already, in which case nothing is recorded.

        Raises:
            DatabaseUnavailableError: nobody can say.
        """
        number = next(self._numbers)
        with self._asking() as connection:
            connection.send(type="claim", claim=number, **asdict(message))
            answer = connection.answer("claimed", "claim", number, ANSWER_TIMEOUT)
        self._free.append(connection)
        if answer["result"] == "unavailable":
            raise DatabaseUnavailableError("there is no lock session.")
        if answer["result"] == "refused":
            raise SchemaError(answer["reason"])
        return Row(**answer["found"]) if answer["result"] == "waits" else None

    def forget(self, task_id: str, *, wait: bool = False) -> None:
        """Free the row of a message that waits no more; if the database is away, the sweep does it.

        Args:
            task_id: of the message.
            wait: until the row is free, for `FORGET_PATIENCE` at most.
        """
        number = next(self._numbers) if wait else None
        with contextlib.suppress(DatabaseUnavailableError), self._asking() as connection:
            connection.send(type="forget", task_id=task_id, claim=number)
            if number is not None:
                connection.answer("claimed", "claim", number, FORGET_PATIENCE)
            self._free.append(connection)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[_Connection]:
        """A connection for the block, closed if the block fails: the keeper takes what was asked for as ended.

        Raises:
            DatabaseUnavailableError: the keeper does not answer.
        """
        connection = None
        try:
            connection = self._free.pop() if self._free else self._connect()
            yield connection
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, OSError):
                raise DatabaseUnavailableError(f"the keeper of this node does not answer: {error}.") from error
            raise

    def _connect(self) -> _Connection:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.close(join(sock, self._address, _CONNECT_TIMEOUT))
        except BaseException:
            sock.close()
            raise
        return _Connection(sock)

    def _give_back(self, connection: _Connection, number: int) -> None:
        try:
            connection.send(type="free", run=number)
        except OSError:
            connection.close()
        else:
            self._free.append(connection)


_client: RunClient | None = None
_pid = 0
_lock = threading.Lock()
_deadly = True


def spare_this_process() -> None:
    """Do not kill this process for a run that does not end in time: `highlander_on_stuck` is `continue`."""
    global _deadly  # noqa: PLW0603  # one for each process
    _deadly = False


def client_for(app: Celery) -> RunClient:
    """Return this process's client.

    Raises:
        HighlanderError: there is no keeper, and none can be started.
    """
    global _client, _pid  # noqa: PLW0603  # one for each process
    if _pid != os.getpid():
        _client, _pid = None, os.getpid()  # inherited by a fork: it is the parent's
    if _client is not None and _client.is_usable:
        return _client
    with _lock:
        if _client is None or not _client.is_usable:
            _client = _new_client(app)
        return _client


def _new_client(app: Celery) -> RunClient:
    address = os.environ.get(ADDRESS_VARIABLE)
    if not address:
        address = start_keeper(app)
    deadly = _deadly and not is_alone()
    give_up_at = time.monotonic() + KEEPER_PATIENCE
    while True:
        try:
            return RunClient(address, deadly=deadly)
        except OSError as error:
            if time.monotonic() > give_up_at:
                raise DatabaseUnavailableError(f"the keeper of this node cannot be reached: {error}.") from error
        time.sleep(_RETRY_DELAY)
