"""What every server can do: start, stop, be killed, be paused; it knows no particular server."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import Self

from tests.arena import processes
from tests.arena.processes import Account, ServerError
from tests.arena.waiting import WaitedInVainError, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType


class Server(ABC):
    """A server on a port of its own; a context manager that starts it and leaves nothing behind.

    `stop` and `restart` keep the data and the port; `close` removes the data.
    """

    purpose: ClassVar[str]
    death_signal: ClassVar[signal.Signals] = signal.SIGKILL
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    start_timeout: ClassVar[float] = 60.0
    stop_timeout: ClassVar[float] = 60.0

    def __init__(self, *, netns: str | None = None, user: Account | None = None) -> None:
        self.netns = netns
        self.user = user
        self.port = processes.free_port()
        self.directory = processes.make_directory(self.purpose)
        self.log = self.directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._paused: list[int] = []
        processes.at_end(self.close)

    @abstractmethod
    def _argv(self) -> Sequence[str]:
        """The command that runs the server in the foreground."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Whether it serves clients; asked again and again after a start, must not raise for "not yet"."""

    def _prepare(self) -> None:  # noqa: B027 - most servers need nothing
        """Write what the server needs before a start."""

    def _environment(self) -> Mapping[str, str] | None:
        return None

    @property
    def pid(self) -> int:
        """The pid of the server's main process."""
        if self._process is None:
            raise ServerError(f"{self.purpose} is not running")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the server's main process is there, paused or not."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start the server and return once it serves clients."""
        if self.is_running:
            raise ServerError(f"{self.purpose} is running already")
        self._prepare()
        self._process = processes.spawn(
            self._argv(),
            log=self.log,
            user=self.user,
            netns=self.netns,
            death_signal=self.death_signal,
            env=self._environment(),
        )
        try:
            wait_until(lambda: not self.is_running or self._is_ready(), self.start_timeout, f"{self.purpose} to start")
            status = self._process.poll()
            if status is not None:
                raise ServerError(f"{self.purpose} ended with {status}")
        except (ServerError, WaitedInVainError) as error:
            self.kill()
            raise ServerError(f"{error}\n{self.log_tail()}") from error
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self) -> None:
        """End the server in an orderly way; fine if it is not running."""
        self._end(self.stop_signal)

    def restart(self) -> None:
        """Stop and start, on the same port and data."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """SIGKILL for the main process and everything below it; returns when all of them are gone."""
        if self._process is None:
            return
        if self.is_running:
            # Frozen first: nothing can be forked between looking and killing.
            processes.send(self._process.pid, signal.SIGSTOP)
            below = processes.descendants(self._process.pid)
            for pid in (self._process.pid, *below):
                processes.send(pid, signal.SIGKILL)
            self._process.wait(self.stop_timeout)
            wait_until(lambda: not any(map(processes.is_alive, below)), self.stop_timeout, f"{self.purpose} to be dead")
        self._paused = []
        self._process = None

    def pause(self) -> None:
        """SIGSTOP for every process of the server: connections stay, nobody answers."""
        processes.send(self.pid, signal.SIGSTOP)
        below = processes.descendants(self.pid)
        for pid in below:
            processes.send(pid, signal.SIGSTOP)
        self._paused = [*reversed(below), self.pid]

    def resume(self) -> None:
        """SIGCONT for what `pause` stopped."""
        for pid in self._paused:
            processes.send(pid, signal.SIGCONT)
        self._paused = []

    def close(self) -> None:
        """End the server at once and remove its data; may be called twice."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of what the server wrote."""
        with suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return ""

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self.resume()
        if self.is_running:
            self._process.send_signal(number)
            try:
                self._process.wait(self.stop_timeout)
            except subprocess.TimeoutExpired as error:
                tail = self.log_tail()
                self.kill()
                raise ServerError(f"{self.purpose} did not stop within {self.stop_timeout:g} s\n{tail}") from error
        self._process = None

    def __enter__(self) -> Self:
        return self if self.is_running else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


HIDE_VARIABLE = "HIGHLANDER_ARENA_HIDE"


def is_hidden(service: str) -> bool:
    """Whether `HIGHLANDER_ARENA_HIDE=postgresql,redis,rabbitmq` says to behave as if `service` were not installed."""
    return service in os.environ.get(HIDE_VARIABLE, "").replace(" ", "").split(",")


def find_binary(name: str, *directories: str) -> Path | None:
    """Where a server's program is, on the PATH or in the places that are not on everybody's PATH."""
    for directory in (None, "/usr/sbin", "/usr/local/sbin", *directories):
        found = shutil.which(name, path=directory)
        if found:
            return Path(found)
    return None
