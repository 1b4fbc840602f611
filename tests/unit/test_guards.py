"""The guards in the processes that do a singleton's work fail closed: whatever happens, the work is dead in time.

Each script is such a process. It has to be killed, and to have said nothing before.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest

from tests.arena.cluster import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="as on Linux")

LIMIT = 60.0
COMMON = """
import fcntl, logging, os, resource, socket, sys, threading, time
from types import SimpleNamespace
from celery import signals
from celery_highlander.clock import boot_time
from celery_highlander.keeper.cell import LeaseCell, create
from celery_highlander.keeper.children import ADDRESS_VARIABLE, Children, new_address
from celery_highlander.tasks.watch import ActiveRun, RunWatch
from celery_highlander.worker import children
from celery_highlander.worker.runs import HEADER

memory = create()
cell = LeaseCell(memory)

def nobody_reads_the_log():
    theirs, ours = os.pipe()
    fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(ours, False)
    try:
        while True:
            os.write(ours, b".")
    except BlockingIOError:
        os.set_blocking(ours, True)
    logging.basicConfig(stream=os.fdopen(ours, "w"), level=logging.INFO)

def pool_child():
    os.environ[ADDRESS_VARIABLE] = new_address()
    keeper = Children(os.environ[ADDRESS_VARIABLE], memory)
    signals.worker_process_init.send(sender=None)
    while not children._guard._has_cell.wait(0.01):
        keeper.accept()
    return keeper

def begin_task():
    fields = dict(name="q", token=1, elected_at=0.0, namespace="n", schema="", kill_margin=0.4)
    class Task:
        name = "t"
        request = SimpleNamespace(**{HEADER: fields})
    task = Task()
    signals.task_prerun.send(sender=task, task_id="1", task=task, args=(), kwargs={})

def act_after(deadline):
    while boot_time() < deadline + 10.0:
        try:
            time.sleep(0.01)
            if boot_time() > deadline + 0.3:
                os.write(1, b"acts after its lease\\n")
                os._exit(1)
        except BaseException:
            pass
"""


def killed(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMON + textwrap.dedent(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, ""), done


@pytest.mark.parametrize(
    "what_happens",
    [
        pytest.param("theirs.close()", id="the keeper is dead"),
        pytest.param("pass", id="the keeper is frozen"),
        pytest.param("theirs.send(b'nonsense')", id="the watch fails"),
    ],
)
def test_a_run_is_dead_in_time_though_nobody_reads_the_log(what_happens: str) -> None:
    killed(f"""
        nobody_reads_the_log()
        ours, theirs = socket.socketpair()
        cell.deadline = boot_time() + 1.0
        watch = RunWatch(ours, cell, deadly=True)
        watch.enter(ActiveRun(1, "key", abort=True))
        {what_happens}
        act_after(cell.deadline)
    """)


def test_a_run_that_is_entered_after_its_lease_is_late_and_killed() -> None:
    killed("""
        ours, theirs = socket.socketpair()
        cell.deadline = boot_time() - 5.0
        watch = RunWatch(ours, cell, deadly=True)
        time.sleep(1.0)  # it looks now and then
        run = ActiveRun(1, "key", abort=True)
        run.interrupt = None
        watch.enter(run)
        assert watch.is_late
        time.sleep(10.0)
        print("acts after its lease")
    """)


def test_a_task_of_a_pool_child_does_not_begin_after_its_lease() -> None:
    killed("""
        keeper = pool_child()
        cell.deadline = boot_time() - 5.0
        begin_task()
        print("acts after its lease")
    """)


def test_a_task_that_cannot_be_guarded_does_not_begin() -> None:
    killed("""
        keeper = pool_child()
        cell.deadline = boot_time() + 600.0
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))  # so that it can have no mark
        begin_task()
        print("acts without a guard")
    """)


def test_a_task_whose_guard_ends_is_killed() -> None:
    killed("""
        keeper = pool_child()
        cell.deadline = boot_time() + 600.0
        def fail(deadline):
            raise MemoryError
        children._guard._arm = fail
        begin_task()
        time.sleep(10.0)
        print("acts without a guard")
    """)


def test_a_task_is_dead_in_time_though_a_fork_takes_for_ever() -> None:
    killed("""
        os.register_at_fork(before=lambda: time.sleep(600.0))
        keeper = pool_child()
        cell.deadline = boot_time() + 0.5
        begin_task()
        act_after(cell.deadline)
    """)


def test_a_task_is_dead_in_time_without_a_timer_of_the_kernel() -> None:
    killed("""
        os.register_at_fork(before=lambda: time.sleep(600.0))
        keeper = pool_child()
        children._guard._switch._timer = None
        cell.deadline = boot_time() + 0.5
        begin_task()
        act_after(cell.deadline)
    """)
