"""Where processes of this node ask for the keys of their singleton runs, over a Unix socket of the keeper.

A process has one connection for each run at a time, over which it asks and is answered, and one more over which it is
told of a loss. A run has ended when its process says so, or when the connection or the process is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import selectors
import socket
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from celery_highlander.clock import boot_time
from celery_highlander.keeper import run_table as r
from celery_highlander.keeper.cell import LeaseCell, create
from celery_highlander.keeper.children import listen, peer
from celery_highlander.keeper.messages import Channel, ChannelClosedError, Message
from celery_highlander.keeper.session import Claim, Forget
from celery_highlander.keeper.victims import Victim, hold
from celery_highlander.keeper.vocabulary import RUN_SAYS
from celery_highlander.store.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_highlander.election.lease import Timing
    from celery_highlander.keeper.session import Effect
    from celery_highlander.store.waiting import Row

logger = logging.getLogger(__name__)

_AT_ONCE = 128


def desk_address(address: str) -> str:
    """Return where a keeper's desk is, by the address at which its worker's pool children register."""
    return f"{address}.runs"


class _Client:
    """A connection of a process."""

    def __init__(self, number: int, channel: Channel, process: _Process) -> None:
        self.number = number
        self.channel = channel
        self.process = process
        self.runs: dict[int, str] = {}  # to the id of the task whose message is gone if its process dies; or nothing


class _Process:
    """A process with its connections."""

    def __init__(self, victim: Victim) -> None:
        self.victim = victim
        self.clients: set[_Client] = set()
        self.told_at: _Client | None = None


class Desk:
    """The runs of a node, between its processes and its lock session.

    Args:
        address: of the keeper.
        timing: the durations of the lease.
        selector: the keeper's; gets what has to be waited for, each with the function to call.
        submit: hands an effect to the lock session.
        kill: kills a process that does not end its run in time, given the process and the reason.
    """

    def __init__(
        self,
        address: str,
        timing: Timing,
        selector: selectors.BaseSelector,
        submit: Callable[[Effect], object],
        kill: Callable[[Victim, str], object],
    ) -> None:
        self._address = desk_address(address)
        self._table = r.RunTable(timing, random.random)
        self._selector = selector
        self._submit = submit
        self._kill = kill
        self.counts: Counter[str] = Counter()  # for the metrics: answers, and seconds that runs have waited for them
        self._asked_at: dict[tuple[int, int], float] = {}
        self._cell_descriptor = create()
        self._cell = LeaseCell(self._cell_descriptor)
        self._processes: dict[int, _Process] = {}
        self._clients: dict[int, _Client] = {}
        self._numbers = 0
        self._events: list[r.RunEvent] = []
        self._claims: dict[int, tuple[_Client, int]] = {}
        self._has_session = False
        self._listener = listen(self._address)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    @property
    def needs_heartbeats(self) -> bool:
        """Whether the session's heartbeats have to renew its row."""
        return self._table.needs_heartbeats

    @property
    def idle(self) -> bool:
        """Whether the session may go."""
        return self._table.idle

    def next_deadline(self) -> float:
        """When `feed(Tick())` is due."""
        return self._table.next_deadline()

    def feed(self, event: r.RunEvent, now: float) -> None:
        """Hand an event to the table and do what it asks."""
        match event:
            case r.SessionOpen():
                self._has_session = True
            case r.SessionLost():
                self._has_session = False
                for client, claim in self._claims.values():
                    self._tell(client, "claimed", claim=claim, result="unavailable")
                self._claims.clear()
            case _:
                pass
        self._events.append(event)
        if len(self._events) > 1:
            return  # it arose while another one is dealt with: it waits for its turn
        while self._events:
            effects = self._table.handle(self._events[0], now)
            self._cell.deadline = self._table.kill_deadline  # before anybody is told that it may begin
            for effect in effects:
                self._do(effect)
            self._events.pop(0)

    def _do(self, effect: r.RunEffect) -> None:
        match effect:
            case r.Answer(run, result, key, token, reason):
                self.counts[f"runs_total:{result}"] += 1
                self.counts["run_wait_seconds_total"] += boot_time() - self._asked_at.pop(run, boot_time())  # type: ignore[assignment]  # floats add up as well
                client = self._clients.get(run[0])
                if client is not None:
                    if result != "held":
                        client.runs.pop(run[1], None)
                    self._tell(client, "answer", run=run[1], result=result, key=key, token=token, reason=reason)
            case r.Lost(run, kill_at, reason):
                client = self._clients.get(run[0])
                if client is not None and client.process.told_at is not None:
                    self._tell(client.process.told_at, "lost", run=run[1], kill_at=kill_at, reason=reason)
            case r.KillRun(run):
                client = self._clients.get(run[0])
                if client is not None:
                    self._kill(client.process.victim, "a singleton task did not end after its lock was lost")
            case _:
                self._submit(effect)

    def _tell(self, client: _Client, type_: str, **fields: Any) -> None:
        try:
            client.channel.send(type_, **fields)
        except ChannelClosedError:
            self._gone(client)

    # -- messages that wait --------------------------------------------------------------------------------------------

    def _claim(self, client: _Client, message: Message) -> None:
        number = self._number(client, message["claim"])
        if number is not None:
            fields = {name: message[name] for name in Waiting.__dataclass_fields__}
            self._submit(Claim(number, Waiting(**fields)))

    def _forget_message(self, client: _Client, message: Message) -> None:
        claim = message["claim"]
        number = None if claim is None else self._number(client, claim)
        self._submit(Forget((message["task_id"],), number))

    def _number(self, client: _Client, claim: int) -> int | None:
        """The number under which a claim is answered; None where there is no session, which is the answer."""
        if not self._has_session:
            self._tell(client, "claimed", claim=claim, result="unavailable")
            return None
        self._numbers += 1
        self._claims[self._numbers] = client, claim
        return self._numbers

    def claimed(self, number: int, found: Row | None, refusal: str) -> None:
        """Tell who asked what waits already, if anything does, or why that cannot be said."""
        client, claim = self._claims.pop(number, (None, 0))
        if client is not None and refusal:
            self._tell(client, "claimed", claim=claim, result="refused", reason=refusal)
        elif client is not None:
            result = "waits" if found else "mine"
            self._tell(client, "claimed", claim=claim, result=result, found=found and asdict(found))

    # -- processes -----------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            pid, uid = peer(connection)
            process = self._process(pid) if uid in {os.getuid(), os.geteuid()} else None
            if process is None:
                connection.close()
                continue
            with contextlib.suppress(OSError):
                connection.setblocking(False)
                socket.send_fds(connection, [b"c"], [self._cell_descriptor])
            self._numbers += 1
            client = _Client(self._numbers, Channel(connection, RUN_SAYS), process)
            self._clients[client.number] = client
            process.clients.add(client)
            self._selector.register(client.channel, selectors.EVENT_READ, lambda client=client: self._hear(client))

    def _process(self, pid: int) -> _Process | None:
        process = self._processes.get(pid)
        if process is not None and process.victim.dead:
            self._died(process)
            process = None
        if process is None:
            victim = hold(pid)
            if victim is None:
                return None
            process = self._processes[pid] = _Process(victim)
            if victim.fileno() >= 0:
                self._selector.register(victim, selectors.EVENT_READ, lambda: self._died(process))
        return process

    def _hear(self, client: _Client) -> None:
        try:
            messages = client.channel.receive()
        except ChannelClosedError:
            self._gone(client)
            return
        now = boot_time()
        for message in messages:
            self._take(client, message, now)

    def _take(self, client: _Client, message: Message, now: float) -> None:
        match message["type"]:
            case "take":
                number = message["run"]
                client.runs[number] = message["task_id"] if message.get("gone_with_it") else ""
                want = r.Want(**{name: message[name] for name in r.Want.__dataclass_fields__})
                self._asked_at[client.number, number] = now
                self.feed(r.Wanted((client.number, number), want), now)
            case "free":
                client.runs.pop(message["run"], None)
                self.feed(r.Ended((client.number, message["run"])), now)
            case "claim":
                self._claim(client, message)
            case "forget":
                self._forget_message(client, message)
            case "watch":
                client.process.told_at = client
            case _:
                pass  # of a later release

    def _gone(self, client: _Client) -> None:
        """A connection is closed: what ran over it has ended."""
        if self._clients.pop(client.number, None) is None:
            return
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(client.channel)
        client.channel.close()
        process = client.process
        process.clients.discard(client)
        if process.told_at is client:
            process.told_at = None
        now = boot_time()
        for number, task_id in client.runs.items():
            if task_id:
                self._submit(Forget((task_id,)))
            self._asked_at.pop((client.number, number), None)
            self.feed(r.Ended((client.number, number)), now)
        if not process.clients:
            self._forget(process)

    def _died(self, process: _Process) -> None:
        """A process is dead, though a connection may be open in one that it has forked."""
        for client in list(process.clients):
            self._gone(client)
        self._forget(process)

    def _forget(self, process: _Process) -> None:
        if self._processes.get(process.victim.pid) is process:
            del self._processes[process.victim.pid]
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(process.victim)
            process.victim.close()

    def close(self) -> None:
        """Listen no more."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(self._listener)
        self._listener.close()
