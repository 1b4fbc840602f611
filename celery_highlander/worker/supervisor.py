"""The supervisor of one singleton process: whatever the process started is dead before the supervisor is.

The launcher forks a supervisor, and that one forks the process. It adopts what is orphaned below it (Linux calls that
a child subreaper), so that no descendant gets away by a double fork, a session of its own, or `nohup`: as long as
something lives, it is below the supervisor, and when nothing is left to wait for, the kernel says so. Hence the end of
the supervisor is the end of the singleton's work, and the keeper waits for that.

It runs no user code and holds no lock that user code could hold: no GIL, no signal handler of theirs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

from celery_highlander.clock import boot_time, poll_timeout
from celery_highlander.keeper import process_table
from celery_highlander.keeper.processes import END_SIGNAL
from celery_highlander.keeper.victims import adopt_orphans, call_this_process, freeze

if TYPE_CHECKING:
    from celery_highlander.keeper.cell import LeaseCell

HAS_SUBREAPER = sys.platform == "linux"
"""Elsewhere there is no supervisor: the process is killed with its process group, and what left that group is not."""

_PR_SET_PDEATHSIG = 1

_DEAF = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR2)
"""What service managers and terminals send to everybody: it is for the process, not for its supervisor."""

_MOMENT = 0.005  # seconds for a killed process to be dead
_LONGEST_PAUSE = 0.02  # seconds between two looks at what does not die at once


def die_with(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent dies; end it now if the parent is dead already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def fork_below(parent: int, channel: int, cell: LeaseCell) -> int:
    """Make this process, a fork of the launcher, a supervisor; return in the process below it only, with our pid.

    Args:
        parent: the launcher's pid.
        channel: the descriptor of the process' channel; its hang-up is the keeper's end.
        cell: until when the process may run.
    """
    os.setsid()
    adopt_orphans()
    wake_in, wake_out = socket.socketpair()
    for sock in (wake_in, wake_out):
        sock.setblocking(False)
    earlier: dict[int, Any] = {}
    for number in (*_DEAF, signal.SIGCHLD, END_SIGNAL):
        earlier[number] = signal.signal(number, _wake)
    signal.set_wakeup_fd(wake_out.fileno(), warn_on_full_buffer=False)
    die_with(parent, END_SIGNAL)
    supervisor = os.getpid()
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        for taken, handler in earlier.items():
            signal.signal(taken, signal.SIG_DFL if handler is None else handler)
        wake_in.close()
        wake_out.close()
        die_with(supervisor)
        os.setsid()
        return supervisor
    try:
        call_this_process("supervisor")
        if not _await_end(pid, channel, cell, wake_in):
            _kill_alone(pid, wake_in)
        end_all_below()
        with contextlib.suppress(OSError):  # a line of its own, whatever the process left unfinished
            os.write(channel, b'\n{"type": "clear"}\n')
    finally:
        os._exit(0)


def _wake(number: int, frame: object) -> None:
    """Do nothing: the number is on the wake-up descriptor. A handler, for an ignored signal would not be there."""


def _await_end(pid: int, channel: int, cell: LeaseCell, wake: socket.socket) -> bool:
    """Wait until the process is dead, or has to be: by the keeper's word or end, or because the lease ends."""
    poll = select.poll()
    poll.register(wake, select.POLLIN)
    poll.register(channel, 0)  # hang-up only: the messages are for the process
    while (left := cell.deadline - boot_time()) > 0:
        ready = {descriptor for descriptor, _ in poll.poll(poll_timeout(left))}
        if channel in ready:
            return False
        if wake.fileno() in ready and END_SIGNAL in wake.recv(4096):
            return False
        if not _reap(until=pid):
            return True
    return False


def _kill_alone(pid: int, wake: socket.socket) -> None:
    """Kill the process and give it a moment to die: mostly that is all there is, and nobody has to be looked for."""
    os.kill(pid, signal.SIGKILL)
    poll = select.poll()
    poll.register(wake, select.POLLIN)
    for _ in range(2):  # the keeper's word and the death may come one after the other
        if not _reap(until=pid) or not poll.poll(_MOMENT * 1000):
            return
        wake.recv(4096)


def _reap(until: int = 0) -> bool:
    """Reap what is dead; return False once `until` was, or when there is nothing left to wait for."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
        if pid == until:
            return False


def end_all_below() -> None:
    """Kill all descendants, and return when the kernel says that there are none; frozen first, so that none is born."""
    me = os.getpid()
    pause = 0.0005
    while _reap():
        for victim in freeze(lambda: process_table.below(me)):
            victim.kill()
            victim.close()
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)
