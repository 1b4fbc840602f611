"""Processes that never outlive the test run: spawned, found and ended by pid; it knows no particular server."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import pwd
import queue
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# Below Linux' range of ephemeral ports (32768 and up), so that a stopped server's port is not taken by some
# outgoing connection before it starts again.
_PORTS = range(20_000, 25_000)
_PREFIX = "highlander-arena-"

# Same session, other group: Ctrl-C does not reach a server, and should we die while it is stopped, the kernel wakes
# the orphaned group, so that the death signal is seen.
_OWN_GROUP: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {"preexec_fn": os.setpgrp}


class ServerError(RuntimeError):
    """A server could not be started or stopped; the message ends with the tail of its log."""


@dataclass(frozen=True, slots=True)
class Account:
    """An operating system user that a server runs as."""

    name: str
    uid: int
    gid: int

    def own(self, path: Path) -> None:
        """Give `path` and everything below it to this user."""
        for entry in (path, *path.rglob("*")):
            os.chown(entry, self.uid, self.gid, follow_symlinks=False)


def account(*names: str) -> Account | None:
    """The first of `names` that exists, for servers that refuse to run as root; None where we are not root."""
    if os.geteuid() != 0:
        return None
    for name in names:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise ServerError(f"running as root, and none of the users {', '.join(names)} exists to run the server as")


def prefix(user: Account | None, netns: str | None, death_signal: signal.Signals) -> list[str]:
    """The argv prefix that enters a network namespace, changes the user and asks for a signal at our death."""
    argv = ["ip", "netns", "exec", netns] if netns else []
    if sys.platform == "linux":
        argv += ["setpriv", "--pdeathsig", death_signal.name.removeprefix("SIG")]
        if user is not None:
            argv += ["--reuid", str(user.uid), "--regid", str(user.gid), "--clear-groups"]
        argv.append("--")
    elif user is not None:
        argv += ["sudo", "-n", "-u", user.name, "--"]
    return argv


def spawn(
    argv: Sequence[str],
    *,
    log: Path,
    user: Account | None = None,
    netns: str | None = None,
    death_signal: signal.Signals = signal.SIGKILL,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start `argv` in a process group of its own; the kernel sends it `death_signal` when this process dies."""

    def start() -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                [*prefix(user, netns, death_signal), *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if env is None else dict(env),
                cwd=cwd or log.parent,
                **_OWN_GROUP,
            )

    return _on_spawner_thread(start)


def run(argv: Sequence[str], *, user: Account | None = None, env: Mapping[str, str] | None = None) -> str:
    """Run a command to its end and return what it wrote; a failure raises ServerError with it."""
    done = subprocess.run(
        [*(prefix(user, None, signal.SIGKILL) if user else []), *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=None if env is None else dict(env),
        cwd="/",
        text=True,
        check=False,
    )
    if done.returncode:
        raise ServerError(f"{' '.join(argv)} ended with {done.returncode}: {done.stdout.strip()}")
    return done.stdout


def descendants(pid: int) -> list[int]:
    """The pids of all living processes below `pid`, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = entry.read_text().rpartition(")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        if state != "Z":
            children.setdefault(int(parent), []).append(int(entry.parent.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(0), [])
        found += below
        waiting += below
    return found


def is_alive(pid: int) -> bool:
    """Whether `pid` is a process that still runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal; a process that is gone already is fine."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


_reserved: dict[int, int] = {}  # to the descriptor of its lock file


def free_port() -> int:
    """A loopback port that nobody listens on, reserved against other test processes until this one ends."""
    directory = Path(tempfile.gettempdir()) / f"{_PREFIX}ports-{os.geteuid()}"
    directory.mkdir(exist_ok=True)
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        if port in _reserved:
            continue
        reservation = os.open(directory / str(port), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
        try:
            fcntl.flock(reservation, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            os.close(reservation)
            continue
        _reserved[port] = reservation
        return port
    raise ServerError(f"no free port between {_PORTS.start} and {_PORTS.stop}")


def make_directory(purpose: str) -> Path:
    """A new directory that every user can reach; removed at the end, or by the next run where this one is killed."""
    root = Path(tempfile.gettempdir()) / f"{_PREFIX}{os.getpid()}"
    if not root.exists():
        _sweep()
        root.mkdir()
        root.chmod(0o755)
        at_end(lambda: shutil.rmtree(root, ignore_errors=True))
    directory = Path(tempfile.mkdtemp(prefix=f"{purpose}-", dir=root))
    directory.chmod(0o755)
    return directory


def cache_directory() -> Path:
    """The directory of what is worth keeping between runs."""
    directory = Path(tempfile.gettempdir()) / f"{_PREFIX}cache-{os.geteuid()}"
    directory.mkdir(exist_ok=True)
    directory.chmod(0o755)
    return directory


def at_end(action: Callable[[], object]) -> None:
    """Call `action` when this very process ends; not in a forked child that inherited the registration."""
    owner = os.getpid()
    atexit.register(lambda: action() if os.getpid() == owner else None)


def _sweep() -> None:
    for entry in Path(tempfile.gettempdir()).glob(f"{_PREFIX}[0-9]*"):
        owner = entry.name.removeprefix(_PREFIX)
        if owner.isdigit() and not is_alive(int(owner)):
            shutil.rmtree(entry, ignore_errors=True)


@dataclass(slots=True)
class _Spawner:
    """One thread for all of a process' spawning: the death signal is sent when the *thread* that forked ends."""

    owner: int
    orders: queue.SimpleQueue[Callable[[], None]]

    def serve(self) -> None:
        while True:
            self.orders.get()()


_spawner: _Spawner | None = None


def _on_spawner_thread(start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    global _spawner  # noqa: PLW0603 - one per process, made when first needed
    if _spawner is None or _spawner.owner != os.getpid():
        _spawner = _Spawner(os.getpid(), queue.SimpleQueue())
        threading.Thread(target=_spawner.serve, name="arena-spawner", daemon=True).start()
    outcome: queue.SimpleQueue[subprocess.Popen[bytes] | BaseException] = queue.SimpleQueue()

    def order() -> None:
        try:
            outcome.put(start())
        except BaseException as error:  # noqa: BLE001 - handed to the caller, whatever it is
            outcome.put(error)

    _spawner.orders.put(order)
    result = outcome.get()
    if isinstance(result, BaseException):
        raise result
    return result
