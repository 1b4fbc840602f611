"""A dead man's switch: the kernel kills this process at an instant, in whatever state it is then.

Tasks that run in the worker's own process are frozen with it, and with its keeper where the whole node is. When they
wake up after the lease, they would go on until somebody notices. The kernel's timer needs nobody, and SIGKILL also
ends a process that is stopped. Linux only: elsewhere the first instructions after such a pause are the fencing
token's to guard.
"""

from __future__ import annotations

import ctypes
import math
import signal
import sys

_CLOCK_BOOTTIME = 7
_TIMER_ABSTIME = 1


class _Event(ctypes.Structure):
    """`struct sigevent`, of 64 bytes."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),  # 0: SIGEV_SIGNAL
        ("rest", ctypes.c_char * 48),
    )


class _When(ctypes.Structure):
    """`struct itimerspec`: the interval (none), then the instant."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("every_s", "every_ns", "at_s", "at_ns"))


class DeadMansSwitch:
    """The switch of this process; not inherited by what it forks."""

    def __init__(self) -> None:
        self._deadline = 0.0
        self._timer: ctypes.c_void_p | None = None
        if sys.platform != "linux":
            return
        self._libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(self._libc, "timer_create"):  # before glibc 2.34 it is in a library of its own
            self._libc = ctypes.CDLL("librt.so.1", use_errno=True)
        event = _Event(signo=signal.SIGKILL)
        timer = ctypes.c_void_p()
        if self._libc.timer_create(_CLOCK_BOOTTIME, ctypes.byref(event), ctypes.byref(timer)) == 0:
            self._timer = timer

    @property
    def works(self) -> bool:
        """Whether there is a timer."""
        return self._timer is not None

    def set(self, deadline: float) -> None:
        """Have this process killed at `deadline` (boot-time clock, seconds); never, where it is 0."""
        if self._timer is None or deadline == self._deadline:
            return
        fraction, seconds = math.modf(deadline)
        when = _When(at_s=int(seconds), at_ns=int(fraction * 1e9))
        if self._libc.timer_settime(self._timer, _TIMER_ABSTIME, ctypes.byref(when), None) == 0:
            self._deadline = deadline
