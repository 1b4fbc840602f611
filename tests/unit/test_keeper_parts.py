"""The keeper's small parts: messages, lease cell, victims, children, complaints."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from celery_highlander.keeper import cell as lease_cell
from celery_highlander.keeper.children import Children, new_address, register
from celery_highlander.keeper.complaints import Complaints
from celery_highlander.keeper.messages import Channel, ChannelClosedError
from celery_highlander.keeper.process_table import below
from celery_highlander.keeper.processes import RESTART_DELAYS, STEADY_AFTER, SingletonProcess
from celery_highlander.keeper.victims import Victim, hold
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

SLEEPER = [sys.executable, "-c", "import signal; signal.pause()"]


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(SLEEPER) as process:
        yield process
        process.kill()


@pytest.fixture
def pair() -> Iterator[tuple[Channel, socket.socket]]:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    yield channel, theirs
    channel.close()
    theirs.close()


def test_a_message_that_arrives_in_pieces_is_read_when_it_is_whole(pair: tuple[Channel, socket.socket]) -> None:
    channel, other = pair
    other.sendall(b'{"type": "pul')
    assert channel.receive() == []
    other.sendall(b'se"}\n{"type": "elected", "name": "a"}\n')
    assert channel.receive() == [{"type": "pulse"}, {"type": "elected", "name": "a"}]


def test_what_was_sent_before_the_end_is_still_read(pair: tuple[Channel, socket.socket]) -> None:
    channel, other = pair
    other.sendall(b'{"type": "ended"}\n')
    other.close()
    assert channel.receive() == [{"type": "ended"}]
    with pytest.raises(ChannelClosedError):
        channel.receive()


def test_a_side_that_never_reads_does_not_block_the_sender(pair: tuple[Channel, socket.socket]) -> None:
    channel, _ = pair

    def talk_on() -> None:
        for _ in range(100_000):
            channel.send("log", message="x" * 1000)

    with pytest.raises(ChannelClosedError):
        talk_on()


def test_a_deadline_in_the_cell_is_seen_by_another_process() -> None:
    descriptor = lease_cell.create()
    cell = lease_cell.LeaseCell(descriptor)
    assert cell.deadline == 0.0
    cell.deadline = 1234.5
    script = f"from celery_highlander.keeper.cell import LeaseCell; print(LeaseCell({descriptor}).deadline)"
    answer = subprocess.run([sys.executable, "-c", script], pass_fds=[descriptor], capture_output=True, check=True)
    assert float(answer.stdout) == 1234.5
    os.close(descriptor)


def test_a_stopped_process_is_killed_all_the_same(sleeper: subprocess.Popen[bytes]) -> None:
    victim = Victim(sleeper.pid)
    victim.send(signal.SIGSTOP)
    assert not victim.dead
    victim.kill()
    wait_until(lambda: victim.dead, 10, "its death")
    assert sleeper.wait(10) == -signal.SIGKILL
    victim.kill()  # dead, and reaped: nothing happens, to nobody else either
    victim.close()


def test_a_process_that_is_gone_cannot_be_held(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    sleeper.wait(10)
    assert hold(sleeper.pid) is None


def test_descendants_are_found_at_every_depth() -> None:
    script = f"import subprocess; subprocess.Popen({SLEEPER!r}).wait()"
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        found = wait_until(lambda: below(process.pid), 10, "its child")
        assert set(found) <= set(below(os.getpid()))
        for pid in (*found, process.pid):
            os.kill(pid, signal.SIGKILL)


def test_a_child_registers_and_is_known_by_the_kernels_word() -> None:
    descriptor = lease_cell.create()
    lease_cell.LeaseCell(descriptor).deadline = 7.0
    children = Children(new_address(), descriptor)
    script = (
        "import sys, signal; from celery_highlander.keeper.children import register;"
        "from celery_highlander.keeper.cell import LeaseCell;"
        "connection, cell = register(sys.argv[1], 10); print(LeaseCell(cell).deadline, flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", script, children._address], stdout=subprocess.PIPE) as child:

        def known() -> list[Victim]:
            children.accept()
            return children.victims()

        assert [victim.pid for victim in wait_until(known, 20, "its registration")] == [child.pid]
        assert child.stdout is not None
        assert float(child.stdout.readline()) == 7.0
        child.kill()
        child.wait(10)
        wait_until(lambda: not known(), 10, "its being forgotten")
    children.close()
    os.close(descriptor)


def test_registering_without_a_keeper_fails_at_once() -> None:
    with pytest.raises(OSError, match=r"refused|No such file"):
        register(new_address(), 1.0)


def test_a_process_that_keeps_ending_is_started_again_later_each_time_and_then_not() -> None:
    process = SingletonProcess("feed", 1)
    now = 100.0
    delays: list[float] = []
    for _ in range(len(RESTART_DELAYS) + 1):
        process.started_at = now
        process.ended(None, now + 0.1)
        delays.append(process.restart_at - (now + 0.1))
        now += 10.0
    assert delays[:-1] == pytest.approx(RESTART_DELAYS)
    assert process.restart_at == float("inf")


def test_a_process_that_ran_for_long_starts_with_a_clean_slate() -> None:
    process = SingletonProcess("feed", 1, quick_ends=2)
    process.started_at = 100.0
    process.ended(None, 100.0 + STEADY_AFTER)
    assert process.restart_at == pytest.approx(100.0 + STEADY_AFTER + RESTART_DELAYS[0])


def test_a_process_that_has_to_stop_is_not_started_again() -> None:
    process = SingletonProcess("feed", 1)
    process.stop("shutting down")
    process.ended(None, 100.0)
    assert process.restart_at == float("inf")


# -- complaints --------------------------------------------------------------------------------------------------------


def test_a_trouble_is_told_once_until_the_session_is_steady_and_whatever_its_numbers_are() -> None:
    complaints = Complaints()
    assert not complaints
    assert complaints.is_new("cannot extend file 16384: no space")
    assert not complaints.is_new("cannot extend file 16385: no space")
    assert complaints.is_new("too many clients")
    assert not complaints.is_new("cannot extend file 7: no space")
    assert complaints
    assert complaints.forget() == 2
    assert not complaints
    assert complaints.is_new("too many clients")
    assert complaints.forget() == 0
