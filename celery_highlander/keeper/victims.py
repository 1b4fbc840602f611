"""Processes that may have to be killed, held by pidfd so that a reused pid is never hit; knows not why they die."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path

_HAS_PIDFD = hasattr(os, "pidfd_open")


class Victim:
    """A process, from now on until it is dead."""

    def __init__(self, pid: int) -> None:
        """Hold on to `pid`.

        Raises:
            ProcessLookupError: there is no such process.
        """
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
        """Send a signal; nothing happens if the process is dead."""
        with contextlib.suppress(ProcessLookupError):
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


def descendants(pid: int) -> list[int]:
    """Return the pids of all living descendants of `pid`, from /proc; empty where there is none."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = entry.read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found, queue = [], [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found
