"""Threads, waits and processes of the operating system, also where gevent or eventlet have patched the modules.

The link to the keeper has to go on while a greenlet does not yield, so it must not be one itself. It knows nothing of
what it is used for.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from math import inf
from typing import TYPE_CHECKING, Any

from celery_highlander.clock import boot_time

if TYPE_CHECKING:
    import select
    from collections.abc import Callable, Mapping


def patched_by() -> str:
    """Return what has made the standard library's sockets green: `gevent`, `eventlet`, or nothing."""
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched("socket"):
        return "gevent"
    eventlet = sys.modules.get("eventlet.patcher")
    return "eventlet" if eventlet is not None and eventlet.is_monkey_patched("socket") else ""


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


def unix_socket() -> Any:
    """Return a socket for a Unix address, with the methods of `socket.socket` that `Channel` uses."""
    module = importlib.import_module("_socket")
    return module.socket(module.AF_UNIX, module.SOCK_STREAM)


def sleep(seconds: float) -> None:
    """Block this thread."""
    _original("time", "sleep")(seconds)


def waitpid(pid: int, options: int) -> tuple[int, int]:
    """Do what `os.waitpid` does."""
    ended: tuple[int, int] = _original("os", "waitpid")(pid, options)
    return ended


class Process:
    """A program in a session of its own, started without the module `subprocess`, which gevent takes to pieces."""

    def __init__(self, argv: list[str], *, pass_fds: tuple[int, ...], env: Mapping[str, str]) -> None:
        """Start `argv`; of our descriptors it gets those of `pass_fds` alone, under the same numbers.

        Raises:
            OSError: the program cannot be started.
        """
        # Python's own descriptors are not inherited anyway; these are on their way through exec.
        inherited = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
        for descriptor in pass_fds:
            os.set_inheritable(descriptor, True)
        try:
            self.pid = _original("os", "posix_spawn")(argv[0], argv, dict(env), file_actions=inherited, setsid=True)
        finally:
            for descriptor in pass_fds:
                os.set_inheritable(descriptor, False)

    def kill(self) -> None:
        """Send SIGKILL; nothing happens if it is dead and waited for."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float = inf) -> None:
        """Wait for its end, for `timeout` seconds at most, and let go of it."""
        give_up_at = boot_time() + timeout
        with contextlib.suppress(ChildProcessError):  # somebody who waits for whatever child ends was quicker
            while waitpid(self.pid, os.WNOHANG) == (0, 0) and boot_time() < give_up_at:
                _original("time", "sleep")(0.005)


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
