"""Sockets inside a network namespace, for a process that stays outside; it knows nothing of what they carry."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_DIRECTORY = Path("/run/netns")


def connect(address: str, port: int, netns: str | None, timeout: float = 5.0) -> socket.socket:
    """Return a connection that was made inside the namespace `netns` (None: here); usable from outside of it.

    Raises:
        OSError: nobody listens there, or nobody answers within `timeout` seconds.
    """
    if netns is None:
        return socket.create_connection((address, port), timeout)
    outcome: list[socket.socket | OSError] = []

    def inside() -> None:
        try:
            _enter(netns)
            outcome.append(socket.create_connection((address, port), timeout))
        except OSError as error:
            outcome.append(error)

    # A namespace is a thread's own, and a socket stays in the one that it was made in.
    thread = threading.Thread(target=inside, name=f"arena-in-{netns}", daemon=True)
    thread.start()
    thread.join()
    if isinstance(outcome[0], OSError):
        raise outcome[0]
    return outcome[0]


def _enter(netns: str) -> None:
    descriptor = os.open(_DIRECTORY / netns, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)
