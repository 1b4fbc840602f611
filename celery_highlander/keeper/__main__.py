"""`python -m celery_highlander.keeper FD`: the keeper's process; everything it has to know comes over the socket FD."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import sys

from celery_highlander.keeper.loop import Keeper
from celery_highlander.keeper.messages import Channel, ChannelClosedError, Message, MessageError
from celery_highlander.keeper.victims import hold
from celery_highlander.keeper.vocabulary import WORKER_SAYS

HELLO_TIMEOUT = 30.0

EX_DATAERR = 65  # sysexits.h: the input data was incorrect in some way


class LastResort(logging.StreamHandler):  # type: ignore[type-arg]  # whatever standard error is
    """Writes to standard error what has room there: a keeper never waits for whoever reads the worker's log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, as far as there is room for it."""
        poll = select.poll()
        poll.register(self.stream, select.POLLOUT)
        line = f"{self.format(record)}\n".encode(errors="replace")
        for start in range(0, len(line), select.PIPE_BUF):  # for so much, where there is room at all
            if not poll.poll(0):
                return
            os.write(self.stream.fileno(), line[start : start + select.PIPE_BUF])


class PipeHandler(logging.Handler):
    """Sends log records to the worker, whose log they belong to; to standard error when the worker is gone."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel
        self._alone = LastResort()
        self._alone.setFormatter(logging.Formatter("[%(asctime)s: %(levelname)s/highlander-keeper] %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        if record.levelno >= logging.CRITICAL:
            with contextlib.suppress(Exception):
                self._alone.emit(record)  # as well: the worker may be dead before it has read that it is killed
        try:
            message = self.format(record)
            action = getattr(record, "action", None)
            self._channel.send("log", level=record.levelno, message=message, action=action)
        except ChannelClosedError:
            with contextlib.suppress(Exception):
                self._alone.emit(record)


def _live_on(number: int, frame: object) -> None:
    """It lives exactly as long as its worker. A handler, for an ignored signal would stay ignored in what it starts."""


def _await_hello(channel: Channel) -> list[Message]:
    """The hello, and whatever came with it; nothing if the worker went away."""
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while poll.poll(HELLO_TIMEOUT * 1000):
        try:
            messages = channel.receive()
        except MessageError as error:
            raise _not_a_hello(error) from None
        except ChannelClosedError:
            return []
        if messages:
            return messages
    return []


def _not_a_hello(reason: object) -> SystemExit:
    """Say that nothing can be kept for this worker; return what ends the keeper."""
    logging.getLogger(__name__).critical("the worker's first message is no hello: %s", reason)
    return SystemExit(EX_DATAERR)


def main() -> int:
    """Keep for the worker that started this process; return the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, _live_on)
    parent = os.getppid()
    channel = Channel(socket.socket(fileno=int(sys.argv[1])), WORKER_SAYS)
    logging.basicConfig(level=logging.INFO, handlers=[PipeHandler(channel)], format="%(message)s")
    worker = hold(parent)
    messages = _await_hello(channel)
    if worker is None or not messages:
        return 0  # the worker is gone already
    hello, *further = messages
    if hello["type"] != "hello":
        raise _not_a_hello(hello["type"])
    if hello["pid"] != parent:
        return 0
    try:
        keeper = Keeper(channel, worker, hello)
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise _not_a_hello(repr(error)) from None
    try:
        keeper.run(further)
    except BaseException as error:  # noqa: BLE001  # whatever it is: nothing may stay behind unwatched
        keeper.emergency(error)
        return 70
    return 0


if __name__ == "__main__":
    sys.exit(main())
