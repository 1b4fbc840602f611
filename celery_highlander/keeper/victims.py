"""Processes that may have to be killed, held by pidfd so that a reused pid is never hit; knows not why they die."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING

from celery_highlander.clock import boot_time
from celery_highlander.keeper import process_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

FREEZE_LIMIT = 0.3
"""Seconds that freezing a tree may take before its members are killed as far as they are known."""

_MOMENT = 0.0005  # seconds for a signal to stop what it was sent to
_HAS_PIDFD = hasattr(os, "pidfd_open")
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NAME = 15

NAME_PREFIX = "hl-"
"""How the short names of launchers and supervisors begin; the kernel keeps 15 characters."""


class Victim:
    """A process, from now on until it is dead."""

    def __init__(self, pid: int) -> None:
        """Hold on to `pid`.

        Raises:
            ProcessLookupError: there is no such process.
        """
        if pid <= 0:  # the kernel's word for a process of another PID namespace; to `kill`, a whole group
            raise ProcessLookupError(f"no process that can be seen from here: {pid}")
        self.pid = pid
        self._pidfd = os.pidfd_open(pid) if _HAS_PIDFD else -1
        if not _HAS_PIDFD:
            os.kill(pid, 0)

    def fileno(self) -> int:
        """A descriptor that becomes readable when the process is dead; -1 where the system has none."""
        return self._pidfd

    @property
    def dead(self) -> bool:
        """Whether it is dead (a zombie is)."""
        if _HAS_PIDFD:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            return bool(poll.poll(0))
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if the process is dead, or belongs to another user."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if _HAS_PIDFD:
                signal.pidfd_send_signal(self._pidfd, number)
            else:
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL; the process is dead a moment later, stopped or not."""
        self.send(signal.SIGKILL)

    def close(self) -> None:
        """Let go of it."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def hold(pid: int) -> Victim | None:
    """Return the process `pid`, or None if it is gone already."""
    try:
        return Victim(pid)
    except ProcessLookupError:
        return None


def adopt_orphans() -> None:
    """Become the parent of every process below this one whose own parent dies; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def call_this_process(name: str) -> None:
    """Set the short name of this process, which its corpse bears, too; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, (NAME_PREFIX + name).encode(), 0, 0, 0)


def reap_inherited(waitpid: Callable[[int, int], object] = os.waitpid) -> None:
    """Reap the dead launchers and supervisors that this process was given when their keeper died: as PID 1, it is.

    Args:
        waitpid: the function of that name, where the one of `os` may not be called on this thread.
    """
    for pid, name in process_table.dead_children():
        if name.startswith(NAME_PREFIX):
            with contextlib.suppress(ChildProcessError):
                waitpid(pid, os.WNOHANG)


def freeze(find: Callable[[], Iterable[int]]) -> list[Victim]:
    """Stop every process that `find` returns, until it finds no further ones; return those that live, stopped.

    A stopped process starts no other, so a tree that grows while it is killed is frozen first and killed then. A
    process is signalled only when it was found again after it was held: its number is its own.
    """
    held: dict[int, Victim] = {}
    stopped: set[int] = set()
    give_up_at = boot_time() + FREEZE_LIMIT
    while True:
        found = set(find())
        news = False
        for pid in found - stopped:
            if pid not in held:
                news = _hold_in(held, pid) or news
            else:
                held[pid].send(signal.SIGSTOP)
                stopped.add(pid)
                news = True
        for pid in [pid for pid, victim in held.items() if victim.dead]:
            held.pop(pid).close()
            stopped.discard(pid)
        if boot_time() > give_up_at:
            break  # what escaped is found again by whoever waits for the end of them all
        if not news:
            if all(process_table.is_at_rest(pid) for pid in held):
                break
            time.sleep(_MOMENT)
    return list(held.values())


def _hold_in(held: dict[int, Victim], pid: int) -> bool:
    victim = hold(pid)
    if victim is None:
        return False
    held[pid] = victim
    return True
