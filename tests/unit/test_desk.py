"""The desk, over real sockets, without a session: what is heard first, and whose answers count."""

from __future__ import annotations

import itertools
import json
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from celery_highlander.clock import boot_time
from celery_highlander.election.lease import Timing
from celery_highlander.keeper import run_table as r
from celery_highlander.keeper.cell import LeaseCell
from celery_highlander.keeper.children import desk_address, new_address
from celery_highlander.keeper.desk import Desk
from celery_highlander.keeper.session import Claim, Claimed
from celery_highlander.store.runs import Registration, Tried
from celery_highlander.store.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif("sys.platform != 'linux'", reason="abstract sockets are Linux's")

ME = "me/1"
KEY = 5 << 10
TIMING = Timing()


class Bench:
    """A desk, and what it has asked of the session."""

    def __init__(self) -> None:
        self._address = new_address()
        self.asked: list[Any] = []
        self.desk = Desk(self._address, TIMING, os.getpid(), self.asked.append)
        self.clients: list[Client] = []

    def open(self, holder: str = ME) -> None:
        """There is a session, on which the first run is about to rely."""
        self.desk.feed(r.SessionOpen(holder, "one"))

    def client(self) -> Client:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(5.0)
        sock.connect("\0" + desk_address(self._address)[1:])
        self.desk.serve()
        _, (descriptor,), _, _ = socket.recv_fds(sock, 1, 1)
        client = Client(sock, descriptor)
        self.clients.append(client)
        return client

    def take(self) -> r.Take:
        """What is being tried for."""
        [take] = [effect for effect in self.asked if isinstance(effect, r.Take) and effect.tries]
        self.asked.clear()
        return take

    def registered(self, holder: str = ME) -> None:
        self.desk.answer(holder, r.Registered(boot_time(), Registration(True, TIMING.lease)))

    def taken(self, holder: str = ME) -> None:
        """What is being tried for is free."""
        [one] = self.take().tries
        self.desk.answer(holder, r.Taken({one.number: Tried(one.base, taken=True)}))


class Client:
    """A connection of this process."""

    def __init__(self, sock: socket.socket, descriptor: int) -> None:
        self.socket = sock
        self.cell = LeaseCell(descriptor)
        os.close(descriptor)
        self._numbers = itertools.count(1)

    def say(self, type_: str, **fields: Any) -> None:
        self.socket.sendall(json.dumps({"type": type_, **fields}).encode() + b"\n")

    def want(self, base: int = KEY, **fields: Any) -> int:
        number = next(self._numbers)
        wanted = {"limit": 1, "name": "key", "task": "pay", "task_id": "id", "wait": 0.0, "fenced": False, **fields}
        self.say("take", run=number, base=base, abort=True, **wanted)
        return number

    def hears(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.socket.recv(65536))
        return found


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    made.open()
    yield made
    made.desk.close()
    for client in made.clients:
        client.socket.close()


@pytest.fixture
def holding(bench: Bench) -> tuple[Client, int]:
    """A client with a run that holds the key."""
    client = bench.client()
    run = client.want()
    bench.desk.serve()
    bench.registered()
    bench.taken()
    assert client.hears()["result"] == "held"
    return client, run


def test_a_run_may_begin_when_the_cell_says_until_when(holding: tuple[Client, int]) -> None:
    assert boot_time() < holding[0].cell.deadline < boot_time() + TIMING.lease


@pytest.mark.parametrize("how", ["free", "close"])
def test_what_has_ended_is_heard_before_what_is_wanted_anew(
    bench: Bench, holding: tuple[Client, int], how: str
) -> None:
    """Whatever the order in which the kernel has them: the second one would be told that the key is held."""
    client, run = holding
    others = [bench.client() for _ in range(20)]
    for other in others[:10]:
        other.want(task_id="other")
    if how == "free":
        client.say("free", run=run)
    else:
        client.socket.close()
    for other in others[10:]:
        other.want(task_id="other")
    bench.desk.serve()
    assert [one.base for one in bench.take().tries] == [KEY]


def test_the_answer_of_a_session_that_was_given_up_counts_for_nothing(bench: Bench) -> None:
    client = bench.client()
    client.want(wait=5.0)
    bench.desk.serve()
    bench.registered()
    [one] = bench.take().tries
    bench.desk.feed(r.SessionLost("cut"))
    bench.open("me/2")
    bench.desk.answer(ME, r.Taken({one.number: Tried(KEY, taken=True)}))
    bench.registered("me/2")
    bench.taken("me/2")
    answer = client.hears()
    assert (answer["result"], answer["key"]) == ("held", KEY)
    assert not bench.asked, "nothing was given back that this session has never got"


def test_a_claim_is_answered_where_its_session_is_lost(bench: Bench) -> None:
    client = bench.client()
    message = Waiting(KEY, "shop", "key", "pay", "id", "celery", None)
    client.say("claim", claim=7, **{name: getattr(message, name) for name in Waiting.__dataclass_fields__})
    bench.desk.serve()
    [claim] = [effect for effect in bench.asked if isinstance(effect, Claim)]
    assert claim.message == message
    bench.desk.feed(r.SessionLost("cut"))
    assert client.hears() == {"type": "claimed", "claim": 7, "result": "unavailable"}
    bench.desk.answer(ME, Claimed(claim.number, None))


def test_nobody_goes_on_after_an_error_on_the_other_thread(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    client = bench.client()
    monkeypatch.setattr(bench.desk._table, "handle", lambda *_: 1 / 0)
    client.want()
    with pytest.raises(ZeroDivisionError):
        bench.desk.serve()
    monkeypatch.undo()
    for use in (bench.desk.serve, bench.desk.take_overdue, lambda: bench.desk.feed(r.SessionLost("cut"))):
        with pytest.raises(ZeroDivisionError):
            use()
    bench.desk._lock._error = None  # it is about to be closed


@pytest.mark.usefixtures("holding")
def test_a_run_of_the_worker_itself_that_goes_on_is_told_of_once(bench: Bench) -> None:
    bench.desk.feed(r.SessionLost("cut"))
    assert not bench.desk.take_overdue()
    assert bench.desk.kill_at < boot_time() + TIMING.lease
    bench.desk._table._running[next(iter(bench.desk._table._running))].kill_at = boot_time()
    bench.desk.serve()
    assert bench.desk.take_overdue()
    assert not bench.desk.take_overdue()
