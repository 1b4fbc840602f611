"""Threads, waits and processes of the operating system, also where gevent or eventlet have patched the modules.

The link to the keeper has to go on while a greenlet does not yield, so it must not be one itself. It knows nothing of
what it is used for.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import select
    import subprocess
    from collections.abc import Callable


def _original(module: str, name: str) -> Any:
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None:
        return gevent.get_original(module, name)
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None:
        return getattr(eventlet.original(module), name)
    return getattr(importlib.import_module(module), name)


def start_thread(run: Callable[[], None]) -> None:
    """Run `run` in a new thread, which does not keep the process from ending."""
    _original("_thread", "start_new_thread")(run, ())


def thread_ident() -> int:
    """Return the identifier of the thread itself, not of a greenlet in it."""
    ident: int = _original("_thread", "get_ident")()
    return ident


def lock() -> Any:
    """Return a lock for threads."""
    return _original("_thread", "allocate_lock")()


def poll() -> select.poll:
    """Return a poll object that blocks its thread."""
    made: select.poll = _original("select", "poll")()
    return made


def socketpair() -> tuple[Any, Any]:
    """Return two connected sockets, with the methods of `socket.socket` that `Channel` uses."""
    # Without patching these are sockets of the module `socket`; with it those would be green ones.
    return importlib.import_module("_socket").socketpair()  # type: ignore[no-any-return]  # the C module has no types


def popen(argv: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process as `subprocess.Popen` does."""
    process: subprocess.Popen[bytes] = _original("subprocess", "Popen")(argv, **options)
    return process


class Latch:
    """An event that is set once."""

    def __init__(self) -> None:
        self._lock = lock()
        self._lock.acquire()
        self.is_set = False

    def set(self) -> None:
        """Let everybody go on who waits, or will wait."""
        if not self.is_set:
            self.is_set = True
            self._lock.release()

    def wait(self, timeout: float) -> bool:
        """Block this thread for `timeout` seconds at most; return whether the latch is set."""
        if self._lock.acquire(timeout=max(0.0, timeout)):
            self._lock.release()
        return self.is_set
