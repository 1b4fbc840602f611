"""The pool children of the worker: each one connects to the keeper by itself, so that the keeper can kill it.

A child is known by the credentials that the kernel gives for its connection, and gets the lease cell in return.
The address is an abstract socket on Linux, which leaves no file behind.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

from celery_highlander.keeper.victims import Victim, hold

ADDRESS_VARIABLE = "CELERY_HIGHLANDER_KEEPER"
"""The environment variable by which pool children find their keeper."""

LEDGER_VARIABLE = "CELERY_HIGHLANDER_LEDGER"
"""The environment variable by which a beat finds its keeper's desk for the tick ledger."""

_AT_ONCE = 128
_UCRED = struct.Struct("3i")


def new_address() -> str:
    """Return an address for `Children`; a leading `@` stands for an abstract one."""
    name = f"celery-highlander-{uuid.uuid4().hex}"
    return f"@{name}" if sys.platform == "linux" else str(Path(tempfile.gettempdir()) / f"{name}.sock")


def desk_address(address: str) -> str:
    """Return where a keeper's desk is, by the address at which its worker's pool children register."""
    return f"{address}.runs"


def ledger_address(address: str) -> str:
    """Return where a keeper's desk for the tick ledger is."""
    return f"{address}.ticks"


def raw_address(address: str) -> str:
    """Return an address as the kernel has it."""
    return "\0" + address[1:] if address.startswith("@") else address


def listen(address: str) -> socket.socket:
    """Return a listener at `address` that does not block.

    Raises:
        OSError: somebody else listens there.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(raw_address(address))
    listener.listen(128)
    listener.setblocking(False)
    return listener


class Children:
    """The registered children; `fileno` is the listener to wait on."""

    def __init__(self, address: str, cell: int) -> None:
        self._address = address
        self._cell = cell
        self._listener = listen(address)
        self._known: dict[int, tuple[Victim, socket.socket]] = {}

    def fileno(self) -> int:
        """The listener's descriptor."""
        return self._listener.fileno()

    def accept(self) -> None:
        """Register those who have connected, and forget those who are dead."""
        for pid, (victim, connection) in list(self._known.items()):
            if victim.dead:
                victim.close()
                connection.close()
                del self._known[pid]
        for _ in range(_AT_ONCE):  # the rest is still there at the next turn: nobody keeps the keeper from its work
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            pid, uid = peer(connection)
            child = hold(pid) if uid in {os.getuid(), os.geteuid()} else None
            if child is None:
                connection.close()
                continue
            with contextlib.suppress(OSError):
                connection.setblocking(False)
                socket.send_fds(connection, [b"c"], [self._cell])
            self._known[pid] = (child, connection)

    def victims(self) -> list[Victim]:
        """Return the children that are not dead."""
        return [victim for victim, _ in self._known.values() if not victim.dead]

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()
        if not self._address.startswith("@"):
            Path(self._address).unlink(missing_ok=True)


def peer(connection: socket.socket) -> tuple[int, int]:
    """Return pid and user of the process at the other end, as the kernel has them."""
    if hasattr(socket, "SO_PEERCRED"):
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid, uid, _ = _UCRED.unpack(credentials)
        return pid, uid
    local_peerpid = 2  # macOS: LOCAL_PEERPID; the socket's file can be reached by its owner alone
    return connection.getsockopt(0, local_peerpid), os.getuid()


def register(address: str, timeout: float) -> tuple[socket.socket, int]:
    """Connect this process to the keeper at `address`; return the connection, to keep open, and the cell's descriptor.

    Raises:
        OSError: there is no keeper at the moment.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        return connection, join(connection, address, timeout)
    except BaseException:
        connection.close()
        raise


def join(connection: Any, address: str, timeout: float) -> int:
    """Connect a socket to the keeper's listener at `address`; return the descriptor of a lease cell.

    Raises:
        OSError: there is no keeper at the moment.
    """
    connection.settimeout(timeout)
    connection.connect(raw_address(address))
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
    if not descriptors:
        raise ConnectionError("the keeper closed the connection")
    return descriptors[0]
