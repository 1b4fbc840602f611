"""Singleton processes: forked by a launcher that has the user's code loaded, and started again.

The keeper runs no user code, and starting an interpreter takes a second. So it starts one *launcher* beside
itself, which imports the application and then waits; a process is a fork of it and runs within milliseconds.

Between launcher and process there is a *supervisor* (Linux): it adopts whatever is orphaned below the process, kills
all of it when the process ends or has to, and ends only when nothing is left. So the work of a singleton process is
dead when its supervisor is. The chain of parents is a chain of deaths: the kernel kills the launcher when the keeper
dies, and tells the supervisor when the launcher dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any

from celery_highlander.keeper import process_table
from celery_highlander.keeper.messages import Channel, ChannelClosedError, Message
from celery_highlander.keeper.victims import Victim, freeze, hold
from celery_highlander.keeper.vocabulary import LAUNCHER_SAYS, PROCESS_SAYS

if TYPE_CHECKING:
    from collections.abc import Mapping

RESTART_DELAYS = (0.5, 1.0, 2.0)
"""Seconds before a process that ended by itself starts again; after as many quick ends another node gets its chance."""

STEADY_AFTER = 30.0
"""Seconds that a process has to live for its earlier ends to be forgotten."""


END_SIGNAL = signal.SIGUSR1
"""Tells a supervisor to kill everything below it."""

SUPERVISOR_TIMEOUT = 0.15
"""Seconds that a supervisor gets to kill what is below it, before the keeper does it."""


class Launcher:
    """The launcher process; `fileno` is where it reports that it is ready, or why it cannot be."""

    def __init__(self, argv: list[str], load: Mapping[str, Any], cell: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._popen = subprocess.Popen(
                [*argv, str(theirs.fileno())], stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(), cell)
            )
        self._socket = ours
        self._channel = Channel(ours, LAUNCHER_SAYS)
        self.ready = False
        with contextlib.suppress(ChannelClosedError):
            self._channel.send("load", **load, cell=cell, keeper=os.getpid())

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._channel.fileno()

    @property
    def pid(self) -> int:
        """Its pid."""
        return self._popen.pid

    def receive(self) -> list[Message]:
        """Return what it says.

        Raises:
            ChannelClosedError: it is dead.
        """
        return self._channel.receive()

    def fork(self, name: str, token: int) -> Channel:
        """Have a process started; return our end of its channel, on which it says `up` first.

        Raises:
            ChannelClosedError: the launcher is dead.
        """
        ours, theirs = socket.socketpair()
        line = json.dumps({"type": "fork", "name": name, "token": token}).encode() + b"\n"
        with theirs:
            try:
                socket.send_fds(self._socket, [line], [theirs.fileno()])
            except OSError as error:
                ours.close()
                raise ChannelClosedError(f"the launcher is gone: {error}") from error
        return Channel(ours, PROCESS_SAYS)

    def reap(self, pid: int) -> None:
        """Let go of the dead process `pid`: until then its number cannot belong to another one."""
        with contextlib.suppress(ChannelClosedError):
            self._channel.send("reap", pid=pid)

    def end(self) -> None:
        """Kill the launcher, and with it every process that it started."""
        self._popen.kill()
        self._popen.wait()
        self._channel.close()


@dataclass(slots=True)
class SingletonProcess:
    """The process of one singleton, for one term."""

    name: str
    token: int
    restart_at: float = inf
    quick_ends: int = 0
    victim: Victim | None = None
    """Whose death is the end of it all: the supervisor's, or where there is none the process'."""
    channel: Channel | None = None
    started_at: float = 0.0
    stopping: bool = False
    how: str = field(default="killed")
    supervised: bool = False
    cleared: bool = False
    """Whether the supervisor said that nothing is left; if it did not, it was killed, and the keeper has to look."""
    kill_again_at: float = inf
    progress_at: float = inf
    """When it last said that it makes progress; inf as long as it has not said so."""
    handed_on: bool = False
    """Whether it is not started again here, but on another node."""
    body: Victim | None = None
    """The process itself, where it has a supervisor."""

    @property
    def running(self) -> bool:
        """Whether there is a process, or one on its way."""
        return self.channel is not None

    def start(self, launcher: Launcher, now: float) -> None:
        """Ask for the process.

        Raises:
            ChannelClosedError: the launcher is dead.
        """
        self.restart_at = inf
        self.how = "killed"
        self.cleared = False
        self.progress_at = inf
        self.started_at = now
        self.channel = launcher.fork(self.name, self.token)

    def up(self, pid: int, supervisor: int | None) -> Victim | None:
        """Take hold of the process, then let it go to work: it waits for that, so the pids are still their own."""
        self.victim = hold(supervisor or pid)
        self.supervised = supervisor is not None
        self.body = hold(pid) if self.supervised else None
        if self.victim is not None and self.channel is not None and not self.stopping:
            with contextlib.suppress(ChannelClosedError):
                self.channel.send("go")
        return self.victim

    def stop(self, reason: str) -> None:
        """Tell the process to stop; it is not started again."""
        self.stopping = True
        self.restart_at = inf
        if self.channel is not None:
            with contextlib.suppress(ChannelClosedError):
                self.channel.send("stop", reason=reason)

    def kill(self, now: float) -> None:
        """Kill the process and everything below it; it is not started again."""
        self.stopping = True
        self.restart_at = inf
        if self.victim is None:
            return
        if not self.supervised:
            self._kill_group()
            return
        if self.body is not None:
            self.body.kill()
        self.victim.send(signal.SIGCONT)
        self.victim.send(END_SIGNAL)
        self.kill_again_at = now + SUPERVISOR_TIMEOUT

    def abort(self) -> None:
        """Kill the process as one that failed: it is started again."""
        for victim in (self.body, self.victim):
            if victim is not None:
                victim.send(END_SIGNAL if victim is self.victim and self.supervised else signal.SIGKILL)

    def is_hung(self, now: float, timeout: float) -> bool:
        """Whether it has to make progress, and has not for `timeout` seconds."""
        return now - self.progress_at > timeout and self.running and not self.stopping and not self.handed_on

    def hand_on(self, how: str) -> None:
        """Kill the process, and do not start it again here."""
        self.how = how
        self.handed_on = True
        self.abort()

    def kill_again(self, now: float) -> None:
        """Kill what is below a supervisor that takes too long."""
        self.kill_again_at = now + SUPERVISOR_TIMEOUT
        if self.victim is not None and not self.victim.dead:
            kill_all(freeze(lambda: process_table.below(self.victim.pid) if self.victim is not None else ()))
            self.victim.send(signal.SIGCONT)
            self.victim.send(END_SIGNAL)

    def _kill_group(self) -> None:
        """Kill what is left of its process group; it is not reaped yet, so the group is its own."""
        if self.victim is not None and not self.supervised:
            self.victim.kill()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.victim.pid, signal.SIGKILL)

    @property
    def is_clear(self) -> bool:
        """Whether the dead process is known to have left nothing behind."""
        return not self.supervised or self.cleared

    def ended(self, launcher: Launcher | None, now: float) -> None:
        """Clean up after the dead process, and set when to start again: never, if it has to stop or ended too often."""
        self._kill_group()
        if self.victim is not None:
            if launcher is not None:
                launcher.reap(self.victim.pid)
            self.victim.close()
        if self.body is not None:
            self.body.close()
        if self.channel is not None:
            self.channel.close()
        self.victim = self.body = self.channel = None
        self.supervised = False
        self.restart_at = self.kill_again_at = inf
        if now - self.started_at >= STEADY_AFTER:
            self.quick_ends = 0
        if not self.stopping and not self.handed_on and self.quick_ends < len(RESTART_DELAYS):
            self.restart_at = now + RESTART_DELAYS[self.quick_ends]
        self.quick_ends += 1


def kill_all(victims: list[Victim]) -> None:
    """Kill and let go."""
    for victim in victims:
        victim.kill()
        victim.close()


def reap_adopted(launcher: Launcher | None) -> None:
    """Reap what the keeper adopted and is dead; its own launcher is left to `Launcher.end`."""
    with contextlib.suppress(ChildProcessError):
        while (dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if launcher is not None and dead.si_pid == launcher.pid:
                return
            os.waitpid(dead.si_pid, 0)


def strays(launcher: Launcher | None, processes: list[SingletonProcess]) -> list[int]:
    """Return what the keeper adopted from supervisors that were killed themselves: it is nobody's work any more."""
    table = process_table.snapshot()
    known = {process.victim.pid for process in processes if process.victim is not None}
    if launcher is not None:
        known.add(launcher.pid)
    mine = [pid for pid, process in table.items() if process.parent == os.getpid() and pid not in known]
    return [*mine, *(pid for root in mine for pid in process_table.below(root, table))]
