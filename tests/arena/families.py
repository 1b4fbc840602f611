"""Singleton work that starts processes of its own, which do not want to die; each writes under its owner's name.

`python -m tests.arena.families <directory> <singleton> <node> <token>` is such a process: it beats until it is killed.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.arena.journal import Journal

if TYPE_CHECKING:
    from celery_highlander import Leadership

MARK = "HIGHLANDER_ARENA_WORKER"  # as in tests.arena.cluster, which is not needed here
JOURNALS = os.environ.get("HIGHLANDER_ARENA_JOURNALS", ".")
BOMB_SIZE = 200
_ROOT = Path(__file__).resolve().parents[2]


def deafen() -> None:
    """Ignore every signal that can be ignored."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def beat_for_ever(directory: str, singleton: str, node: str, token: str) -> None:
    """The work of a descendant: deaf, and with a line every 2 ms."""
    deafen()
    journal = Journal.open(directory, singleton)
    while True:
        journal.write(singleton, node, token, "beat")
        time.sleep(0.002)


def argv_of_a_descendant(singleton: str, node: object, token: object) -> list[str]:
    """The command line of a descendant that beats."""
    return [sys.executable, str(Path(__file__)), JOURNALS, singleton, str(node), str(token)]


def start_family(singleton: str, node: object, token: object, *, bare: bool = True) -> None:
    """Start descendants: a plain one, one without its environment (if `bare`), and two orphaned daemons."""
    argv = argv_of_a_descendant(singleton, node, token)
    path = {"PYTHONPATH": str(_ROOT)}
    subprocess.Popen(argv, env={**os.environ, **path})
    if bare:
        subprocess.Popen(argv, env={**path, MARK: os.environ[MARK]})  # by that the arena cleans up
    start_daemons(singleton, node, token)


def start_daemons(singleton: str, node: object, token: object) -> None:
    """Start two descendants that nobody is the parent of: by `nohup` of a shell, and by a double fork without exec."""
    argv = argv_of_a_descendant(singleton, node, token)
    env = {**os.environ, "PYTHONPATH": str(_ROOT)}
    subprocess.run(["sh", "-c", 'setsid nohup "$@" > /dev/null 2>&1 &', "sh", *argv], env=env, check=True)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.closerange(3, 1000)  # as daemons do
            beat_for_ever(JOURNALS, singleton, str(node), str(token))
        os._exit(0)
    os.wait()


def writers(directory: Path, singleton: str) -> set[int]:
    """The processes that have written for a singleton."""
    return {int(path.name.split(".")[1]) for path in directory.glob(f"{singleton}.*")}


def leave_running() -> None:
    """Start a program that is to go on, as an ordinary task may; its pid is the name of a file."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    process.returncode = 0  # not ours to wait for
    (Path(JOURNALS) / f"left.{process.pid}").touch()


def left_running(directory: Path) -> list[int]:
    """The pids of those programs."""
    return [int(path.suffix[1:]) for path in directory.glob("left.*")]


# -- singleton processes -----------------------------------------------------------------------------------------------


def patriarch(leadership: Leadership) -> None:
    """Stops when told; its descendants do not."""
    start_family(leadership.name, os.getpid(), leadership.token)
    journal = Journal.open(JOURNALS, leadership.name)
    while not leadership.wait(0.002):
        journal.write(leadership.name, os.getpid(), leadership.token, "beat")


def bomb(leadership: Leadership) -> None:
    """Descendants that start others, up to 200, and again others when some die."""
    living = mmap.mmap(-1, mmap.PAGESIZE)
    owner = os.getpid()

    def count(change: int) -> int:
        value = int.from_bytes(living[:4], "little") + change
        living[:4] = max(0, value).to_bytes(4, "little")
        return value

    def explode() -> None:
        deafen()
        journal = Journal.open(JOURNALS, leadership.name)
        while True:
            if count(0) < BOMB_SIZE and os.fork() == 0:
                os.setsid()
                count(1)
                explode()
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    count(-1)
            except ChildProcessError:
                pass
            journal.write(leadership.name, owner, leadership.token, "beat")
            time.sleep(0.2)

    for _ in range(3):
        if os.fork() == 0:
            count(1)
            explode()
    journal = Journal.open(JOURNALS, leadership.name)
    while not leadership.wait(0.002):
        journal.write(leadership.name, owner, leadership.token, "beat")


def hold_the_gil(seconds: int = 30) -> None:
    """Be in a call of C that does not let another thread run, and deaf."""
    deafen()
    ctypes.PyDLL(None).sleep(seconds)


def unreachable(leadership: Leadership) -> None:
    """Says that it began, and is in a C call from then on."""
    Journal.open(JOURNALS, leadership.name).write(leadership.name, os.getpid(), leadership.token, "beat")
    hold_the_gil()


if __name__ == "__main__":
    beat_for_ever(*sys.argv[1:5])
