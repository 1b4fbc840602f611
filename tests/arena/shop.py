"""The app that the arena's workers run: singletons that write journals; configured by the environment alone."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from pathlib import Path

from celery import Celery, Task, signals

from celery_highlander import Highlander, Leadership, current_leadership
from celery_highlander.keeper.marks import Searcher
from tests.arena import families
from tests.arena.journal import Journal

QUEUE = "highlander"

app = Celery("shop")
app.conf.update(json.loads(os.environ.get("HIGHLANDER_ARENA_CONF", "{}")))
app.conf.broker_connection_retry_on_startup = True
JOURNALS = os.environ.get("HIGHLANDER_ARENA_JOURNALS", ".")

if os.environ.get("HIGHLANDER_ARENA_INSTALL", "1") == "1":
    highlander = Highlander(app)


_main_pid = 0


@signals.worker_init.connect(weak=False)
def _remember_worker(**_: object) -> None:
    global _main_pid  # noqa: PLW0603  # one for each process; what a pool forks inherits it
    _main_pid = os.getpid()
    signal.signal(signal.SIGUSR2, lambda *_: time.sleep(600))  # hangs the main loop, and nothing else


def _node() -> int:
    """The pid of the worker in which a task runs, whatever its pool is."""
    return _main_pid or os.getppid()


def beat_until_told(leadership: Leadership, name: str, pause: float = 0.002) -> None:
    """The well-behaved singleton process: writes a line every 2 ms, and stops when told."""
    journal = Journal.open(JOURNALS, name)
    journal.write(name, os.getpid(), leadership.token, "start")
    while not leadership.wait(pause):
        journal.write(name, os.getpid(), leadership.token, "beat")
    journal.write(name, os.getpid(), leadership.token, "stop")


def ticker(leadership: Leadership) -> None:
    """Stops at once."""
    beat_until_told(leadership, leadership.name)


def stroller(leadership: Leadership) -> None:
    """Stops at once too, and writes less: for tests that take long."""
    beat_until_told(leadership, leadership.name, 0.02)


def slow_to_stop(leadership: Leadership) -> None:
    """Needs 3 s to stop, which is more than it gets, and goes on working meanwhile."""
    journal = Journal.open(JOURNALS, leadership.name)
    journal.write(leadership.name, os.getpid(), leadership.token, "start")
    stop_at = None
    while stop_at is None or time.monotonic() < stop_at:
        if leadership.wait(0.0) and stop_at is None:
            stop_at = time.monotonic() + 3.0
        time.sleep(0.002)
        journal.write(leadership.name, os.getpid(), leadership.token, "beat")
    journal.write(leadership.name, os.getpid(), leadership.token, "stop")


def stubborn(leadership: Leadership) -> None:
    """Never stops by itself, and ignores every signal that can be ignored."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    journal = Journal.open(JOURNALS, leadership.name)
    while True:
        journal.write(leadership.name, os.getpid(), leadership.token, "beat")
        time.sleep(0.002)


def hanging(leadership: Leadership) -> None:
    """Makes progress for half a second, then none any more, on the nodes that `HIGHLANDER_ARENA_FAILS` is set for."""
    if os.environ.get("HIGHLANDER_ARENA_FAILS"):
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            leadership.progress()
            time.sleep(0.01)
        beat_until_told(leadership, leadership.name)
        return
    while not leadership.wait(0.05):
        leadership.progress()
        Journal.open(JOURNALS, leadership.name).write(leadership.name, os.getpid(), leadership.token, "beat")


def failing(leadership: Leadership) -> None:
    """Fails on the nodes that `HIGHLANDER_ARENA_FAILS` is set for, works on the others."""
    if os.environ.get("HIGHLANDER_ARENA_FAILS"):
        raise RuntimeError("it cannot work here")
    beat_until_told(leadership, leadership.name)


if os.environ.get("HIGHLANDER_ARENA_SLOW_SEARCH"):
    _find = Searcher.find

    def _find_slowly(self: Searcher, children: list[int], child: int | None = None) -> list[int]:
        time.sleep(float(os.environ["HIGHLANDER_ARENA_SLOW_SEARCH"]))
        return _find(self, children, child)

    Searcher.find = _find_slowly  # type: ignore[method-assign]


@app.task(acks_late=True, reject_on_worker_lost=True)
def work(number: int, seconds: float = 0.01) -> int:
    """A task of the singleton queue: notes start and end under the node (worker) that runs it, and beats between."""
    leadership = current_leadership()
    journal = Journal.open(JOURNALS, QUEUE)
    node = _node()
    with journal.task(QUEUE, node, leadership.token, str(number)):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            journal.write(QUEUE, node, leadership.token, "beat")
            time.sleep(0.002)
    journal.close()
    return number


@app.task(acks_late=True, reject_on_worker_lost=True)
def holds_gil(number: int, seconds: float) -> int:
    """A task of the singleton queue that is in a C call for that long, and lets nothing else in its process run."""
    journal = Journal.open(JOURNALS, QUEUE)
    with journal.task(QUEUE, _node(), current_leadership().token, str(number)):
        ctypes.PyDLL(None).sleep(int(seconds))
    journal.close()
    return number


@app.task(acks_late=True, reject_on_worker_lost=True)
def sleeps(number: int, seconds: float) -> int:
    """A task of the singleton queue in a C call that only lets other threads run, no exception in."""
    journal = Journal.open(JOURNALS, QUEUE)
    with journal.task(QUEUE, _node(), current_leadership().token, str(number)):
        ctypes.CDLL(None).sleep(int(seconds))
    journal.close()
    return number


@app.task(acks_late=True)
def ordinary(number: int, seconds: float = 0.01) -> int:
    """A task of an ordinary queue."""
    journal = Journal.open(JOURNALS, "ordinary")
    with journal.task("ordinary", _node(), "-", str(number)):
        time.sleep(seconds)
    journal.close()
    return number


@app.task(bind=True, acks_late=True)
def retried(self: Task, number: int, seconds: float = 0.01) -> None:
    """A task of an ordinary queue that asks to be run again, once."""
    ordinary.run(number, seconds)
    if not self.request.retries:
        raise self.retry(countdown=0)


@app.task(acks_late=True, reject_on_worker_lost=True)
def parent(number: int, seconds: float = 0.01, *, bare: bool = False) -> None:
    """A task of the singleton queue that starts processes, which beat under its name until they are killed."""
    leadership = current_leadership()
    node = os.getppid()
    journal = Journal.open(JOURNALS, QUEUE)
    with journal.task(QUEUE, node, leadership.token, str(number)):
        families.start_family(QUEUE, node, leadership.token, bare=bare)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            journal.write(QUEUE, node, leadership.token, "beat")
            time.sleep(0.002)


@app.task
def leaves_a_program(*numbers: float) -> None:  # noqa: ARG001  # what every task is sent
    """A task of an ordinary queue that starts a program on purpose and ends before it."""
    families.leave_running()


@app.task(acks_late=True, reject_on_worker_lost=True)
def unreachable(number: int, _seconds: float = 0.01) -> None:
    """A task of the singleton queue that is in a C call, holding the GIL; when it runs again, it ends at once."""
    leadership = current_leadership()
    journal = Journal.open(JOURNALS, QUEUE)
    with journal.task(QUEUE, os.getppid(), leadership.token, str(number)):
        if len(families.writers(Path(JOURNALS), QUEUE)) == 1:
            families.hold_the_gil()
