"""Where processes of this node ask for the keys of their singleton runs, over a Unix socket of the keeper.

A process has one connection for each run at a time, over which it asks and is answered, and one more over which it is
told of a loss. A run has ended when its process says so, or when the connection or the process is gone.

The thread of the lock session serves the desk: between two of its statements it hears the processes, and tells them
what came of the last one, without a detour through the keeper's loop, which would take longer than all the rest. The
loop serves it where no session does, or where a statement takes long. Whoever does, does it under the one lock, which
nobody holds while anything is waited for. An error on either thread is met by the other one, and ends the keeper.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import selectors
import socket
import threading
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from celery_highlander.clock import boot_time
from celery_highlander.keeper import run_table as r
from celery_highlander.keeper.cell import LeaseCell, create
from celery_highlander.keeper.children import desk_address, listen, peer
from celery_highlander.keeper.messages import Channel, ChannelClosedError, Message
from celery_highlander.keeper.session import Claim, Claimed, Forget
from celery_highlander.keeper.victims import Victim, hold
from celery_highlander.keeper.vocabulary import RUN_SAYS
from celery_highlander.store.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_highlander.election.lease import Timing
    from celery_highlander.keeper.session import Effect

logger = logging.getLogger(__name__)

OVERDUE = "a singleton task did not end after its lock was lost"
"""Why a process is killed."""

_AT_ONCE = 128


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


class _Door:
    """A lock that lets nobody in after an error: what is behind it may be half done. The keeper then ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._error: BaseException | None = None

    def __enter__(self) -> None:
        self._lock.acquire()
        if self._error is not None:
            self._lock.release()
            raise self._error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._error = error
        self._lock.release()


class Desk:
    """The runs of a node, between its processes and its lock session. Every method may be called from any thread.

    Args:
        address: of the keeper.
        timing: the durations of the lease.
        worker: the pid of the worker, which is not the desk's to kill.
        submit: hands an effect to the lock session; called on any thread, has to be quick.
    """

    def __init__(self, address: str, timing: Timing, worker: int, submit: Callable[[Effect], object]) -> None:
        self._lock = _Door()
        self._worker = worker
        self._table = r.RunTable(timing, random.random)
        self._submit = submit
        self._is_worker_overdue = False
        self._counts: Counter[str] = Counter()  # answers, and seconds that runs have waited for them
        self._asked_at: dict[tuple[int, int], float] = {}
        self._cell_descriptor = create()
        self._cell = LeaseCell(self._cell_descriptor)
        self._processes: dict[int, _Process] = {}
        self._clients: dict[int, _Client] = {}
        self._numbers = 0
        self._events: list[r.RunEvent] = []
        self._claims: dict[int, tuple[_Client, int]] = {}
        self._holder = ""  # the session that there is
        self._selector = selectors.DefaultSelector()
        self._listener = listen(desk_address(address))
        self._selector.register(self._listener, selectors.EVENT_READ)

    def fileno(self) -> int:
        """A descriptor that is readable when there is something to serve."""
        return self._selector.fileno()

    @property
    def needs_heartbeats(self) -> bool:
        """Whether the session's heartbeats have to renew its row."""
        return self._table.needs_heartbeats

    @property
    def idle(self) -> bool:
        """Whether the session may go."""
        return self._table.idle

    @property
    def kill_at(self) -> float:
        """When the next process has to be killed."""
        with self._lock:
            return self._table.kill_at

    def next_deadline(self) -> float:
        """When something has to be done, whether there is anything to hear or not."""
        with self._lock:
            return self._table.next_deadline()

    def serve(self) -> None:
        """Hear what processes say, and do what is due."""
        with self._lock:
            self._hear_all()
            now = boot_time()
            if now >= self._table.next_deadline():
                self._feed(r.Tick(), now)

    def feed(self, event: r.SessionOpen | r.SessionLost) -> None:
        """Say that there is a session, or that there is none any more."""
        with self._lock:
            self._feed(event, boot_time())

    def answer(self, holder: str, event: r.RunEvent | Claimed) -> None:
        """Hand over what came of a statement of the session `holder`.

        In the order in which they were done: heartbeats that were read before a lock was got must not be taken for
        those of after, which are the last ones of a debt.
        """
        with self._lock:
            if holder != self._holder:
                return  # of one that was given up
            if isinstance(event, Claimed):
                self._claimed(event)
            else:
                self._feed(event, boot_time())

    def take_overdue(self) -> bool:
        """Return whether a run of the worker itself has not ended in time after its lock was lost; says so once."""
        with self._lock:
            is_overdue, self._is_worker_overdue = self._is_worker_overdue, False
        return is_overdue

    def take_counts(self) -> dict[str, float]:
        """Return, for the metrics, what has happened since the last time."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return dict(counts)

    def _feed(self, event: r.RunEvent, now: float) -> None:
        """Hand an event to the table and do what it asks."""
        match event:
            case r.SessionOpen(holder):
                self._holder = holder
            case r.SessionLost():
                self._holder = ""
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
                self._counts[f"runs_total:{result}"] += 1
                self._counts["run_wait_seconds_total"] += boot_time() - self._asked_at.pop(run, boot_time())  # type: ignore[assignment]  # floats add up as well
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
                    self._kill(client.process.victim)
            case _:
                self._submit(effect)

    def _kill(self, victim: Victim) -> None:
        if victim.pid == self._worker:
            self._is_worker_overdue = True
        else:
            victim.kill()
            logger.warning("killed process %d: %s", victim.pid, OVERDUE, extra={"action": "kill_run"})

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
        if not self._holder:
            self._tell(client, "claimed", claim=claim, result="unavailable")
            return None
        self._numbers += 1
        self._claims[self._numbers] = client, claim
        return self._numbers

    def _claimed(self, answer: Claimed) -> None:
        """Tell who asked what waits already, if anything does, or why that cannot be said."""
        client, claim = self._claims.pop(answer.number, (None, 0))
        if client is not None and answer.refusal:
            self._tell(client, "claimed", claim=claim, result="refused", reason=answer.refusal)
        elif client is not None:
            result = "waits" if answer.found else "mine"
            self._tell(client, "claimed", claim=claim, result=result, found=answer.found and asdict(answer.found))

    # -- processes -----------------------------------------------------------------------------------------------------

    def _hear_all(self) -> None:
        """Hear everything that was said by now, and deal with what has ended first: its key may be wanted again."""
        heard: list[tuple[_Client, Message]] = []
        over: list[_Client | _Process] = []
        for key, _ in self._selector.select(0):
            source = key.data
            if source is None:
                self._accept()
            elif isinstance(source, _Process):
                over.append(source)
            else:
                try:
                    heard += [(source, message) for message in source.channel.receive()]
                except ChannelClosedError:
                    over.append(source)
        now = boot_time()
        for client, message in heard:
            if message["type"] == "free":
                client.runs.pop(message["run"], None)
                self._feed(r.Ended((client.number, message["run"])), now)
        for one in over:
            if isinstance(one, _Process):
                self._died(one)
            else:
                self._gone(one)
        for client, message in heard:
            self._take(client, message, now)

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
            self._selector.register(client.channel, selectors.EVENT_READ, client)

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
                self._selector.register(victim, selectors.EVENT_READ, process)
        return process

    def _take(self, client: _Client, message: Message, now: float) -> None:
        match message["type"]:
            case "take" if client.number in self._clients:
                number = message["run"]
                client.runs[number] = message["task_id"] if message.get("gone_with_it") else ""
                want = r.Want(**{name: message[name] for name in r.Want.__dataclass_fields__})
                self._asked_at[client.number, number] = now
                self._feed(r.Wanted((client.number, number), want), now)
            case "claim":
                self._claim(client, message)
            case "forget":
                self._forget_message(client, message)
            case "watch":
                client.process.told_at = client
            case _:
                pass  # heard already, or of a later release

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
            self._feed(r.Ended((client.number, number)), now)
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
        with self._lock:
            self._selector.unregister(self._listener)
            self._listener.close()
