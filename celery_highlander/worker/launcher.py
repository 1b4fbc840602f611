"""`python -m celery_highlander.worker.launcher FD`: has the application loaded, and forks its singleton processes.

It lives and dies with the keeper. It is single-threaded, so that what it forks is sound.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from typing import TYPE_CHECKING, Any, NoReturn

from celery_highlander.clock import boot_time, poll_timeout
from celery_highlander.keeper.cell import LeaseCell
from celery_highlander.keeper.children import ADDRESS_VARIABLE, LEDGER_VARIABLE, ledger_address
from celery_highlander.keeper.messages import LINE_LIMIT, Channel, ChannelClosedError, Message, MessageError, parse
from celery_highlander.keeper.victims import call_this_process
from celery_highlander.keeper.vocabulary import KEEPER_ORDERS
from celery_highlander.worker import supervisor
from celery_highlander.worker.counting import deliver_to
from celery_highlander.worker.leadership import Leadership, TermInfo, set_current

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

logger = logging.getLogger("celery_highlander.process")


def resolve(path: str) -> Callable[..., object]:
    """Return the function at `module:qualified.name` (or `module.name`).

    Raises:
        ImportError, AttributeError: there is none.
    """
    module, _, qualified = path.partition(":") if ":" in path else path.rpartition(".")
    found: Any = importlib.import_module(module)
    for part in qualified.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{path!r} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]  # callable, as just checked


class LauncherProcess:
    """The launcher: loads once, then forks at request."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = b""
        self._descriptors: deque[int] = deque()
        self._functions: dict[str, Callable[..., object]] = {}
        self._load: Message = {}

    def serve(self) -> None:
        """Do what the keeper asks until it is gone."""
        while True:
            data, descriptors, _, _ = socket.recv_fds(self._socket, 65536, 16)
            if not data:
                return
            self._descriptors.extend(descriptors)
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            if len(self._buffer) > LINE_LIMIT:
                return
            for line in lines:
                self._take(parse(line, KEEPER_ORDERS))

    def _take(self, message: Message) -> None:
        match message["type"]:
            case "load":
                supervisor.die_with(message["keeper"])
                self._load = message
                self._say(**self._prepare(message))
            case "fork":
                if not self._descriptors:
                    raise MessageError("'fork' without a descriptor")
                self._fork(message, self._descriptors.popleft())
            case "reap":
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(message["pid"], 0)
            case _:
                pass

    def _say(self, **message: object) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _prepare(self, load: Message) -> dict[str, object]:
        """Import the application and the functions; say `ready`, or what does not work."""
        sys.path[:] = load["sys_path"]
        try:
            self._load_app(load)
            for name, path in load["functions"].items():
                self._functions[name] = resolve(path)
        except Exception as error:  # noqa: BLE001  # the user's modules may raise anything
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
            return {"type": "failed", "message": f"the singleton processes cannot be loaded: {reason}"}
        return {"type": "ready"}

    def _load_app(self, load: Message) -> None:
        from celery import current_app, signals

        if load["app"]:
            module, _, attribute = load["app"].partition(":")
            app = getattr(importlib.import_module(module), attribute)
        else:
            app = current_app._get_current_object()
        app.set_current()
        app.set_default()
        app.loader.init_worker()
        app.finalize()
        log = load["log"]
        app.log.setup(log["level"], log["file"], log["redirect"], log["redirect_level"], hostname=load["worker"])
        self._process_init = signals.worker_process_init

    def _fork(self, message: Message, descriptor: int) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            os.close(descriptor)
            return
        try:
            self._socket.close()
            cell = LeaseCell(self._load["cell"])
            above = None
            if supervisor.HAS_SUBREAPER:
                above = supervisor.fork_below(parent, descriptor, cell)
            else:
                supervisor.die_with(parent)
                os.setsid()
            self._run(message, Channel(socket.socket(fileno=descriptor)), cell, above)
        finally:
            os._exit(70)

    def _run(self, message: Message, channel: Channel, cell: LeaseCell, above: int | None) -> NoReturn:
        load = self._load
        channel.send("up", pid=os.getpid(), supervisor=above)
        _await_go(channel)
        name = message["name"]
        term = TermInfo(name, message["token"], time.time(), load["namespace"], load["schema"], load["kill_margin"])

        def report() -> None:
            with contextlib.suppress(ChannelClosedError):  # its end is noticed elsewhere
                channel.send("progress")

        def counted(counts: Mapping[str, float], values: Mapping[str, list[float]]) -> None:
            with contextlib.suppress(ChannelClosedError):
                channel.send("counted", counts=counts, values=values)

        deliver_to(counted)
        leadership = Leadership(term, cell, report)
        threading.Thread(target=_watch, args=(channel, cell, leadership), name="highlander-watch", daemon=True).start()
        set_current(leadership)
        _take_signals(leadership)
        self._process_init.send(sender=None)
        function = self._functions[name]
        code, how = 0, "returned"
        try:
            function(leadership) if inspect.signature(function).parameters else function()
        except SystemExit as error:
            code, how = 1, f"exited with {error.code!r}"
        except BaseException as error:  # whatever it raises is its end, and is told
            code, how = 1, f"raised {type(error).__name__}: {error}"
            if not leadership._stop.is_set():
                logger.exception("the process of %r failed", name, extra={"action": "process_failed"})
        with contextlib.suppress(ChannelClosedError):
            channel.send("ended", how=how)
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)  # without the interpreter's farewell, which waits for threads that may never end


def _await_go(channel: Channel) -> None:
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while True:
        poll.poll()
        try:
            types = [message["type"] for message in channel.receive()]
        except ChannelClosedError:
            os._exit(0)
        if "stop" in types:
            os._exit(0)
        if "go" in types:
            return


def _take_signals(leadership: Leadership) -> None:
    """Let SIGTERM, as a service manager sends it to everybody, ask the function to end as the keeper would."""
    owner = os.getpid()
    for other in (signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(other) is _live_on:
            signal.signal(other, signal.SIG_DFL)

    def stop(number: int, frame: object) -> None:
        if os.getpid() == owner:
            leadership._must_stop()
            return
        signal.signal(number, signal.SIG_DFL)  # a child that it forked: for that one it means what it always means
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, stop)


def _watch(channel: Channel, cell: LeaseCell, leadership: Leadership) -> None:
    """Pass the keeper's word on; and where it says nothing any more, end this process before the lease does."""
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while True:
        left = cell.deadline - boot_time()
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        poll.poll(poll_timeout(left))
        try:
            for message in channel.receive():
                if message["type"] == "stop":
                    leadership._must_stop()
        except ChannelClosedError:
            os.kill(os.getpid(), signal.SIGKILL)


def _live_on(number: int, frame: object) -> None:
    """It lives exactly as long as its keeper. A handler, for an ignored signal would stay ignored in what it starts."""


def main() -> int:
    """Serve the keeper that started this process."""
    call_this_process("launcher")
    address = os.environ.pop(ADDRESS_VARIABLE, None)  # that is for pool children
    if address is not None:
        os.environ[LEDGER_VARIABLE] = ledger_address(address)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the worker
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, _live_on)
    with contextlib.suppress(ConnectionError):
        LauncherProcess(socket.socket(fileno=int(sys.argv[1]))).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
