"""A TCP proxy that can stop delivering without closing anything; it knows nothing of the protocol that it carries."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from typing import TYPE_CHECKING, Literal, TypeVar

from tests.arena import namespaces, processes

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType
    from typing import Any

    from typing_extensions import Self

Direction = Literal["to_server", "to_client"]
T = TypeVar("T")

_DIRECTIONS: tuple[Direction, ...] = ("to_server", "to_client")
_CHUNK = 65536
_HELD_CHUNKS = 256


class TcpProxy:
    """Stands between clients and one server, on a loopback port of its own.

    A cut is a black hole: connections stay open, nothing arrives, neither data nor the end of a connection; a new
    connection is accepted, as by a kernel, and hears nothing. What was sent meanwhile is delivered late, by `heal`,
    as TCP would by retransmission; `reset` before that, and it is lost.

    All methods may be called from any thread and have taken effect when they return.

    Args:
        target_host: Where the server is.
        target_port: Its port.
        netns: The network namespace in which `target_host` is reached, where it is not this process' own: the proxy
            is then a door into it.
    """

    def __init__(self, target_host: str, target_port: int, *, netns: str | None = None) -> None:
        self.target = (target_host, target_port)
        self._netns = netns
        self.host = "127.0.0.1"
        self.port = processes.free_port()
        self._delays: dict[Direction, float] = dict.fromkeys(_DIRECTIONS, 0.0)
        self._loop = asyncio.new_event_loop()
        self._gates: dict[Direction, asyncio.Event] = {way: asyncio.Event() for way in _DIRECTIONS}
        self._listener: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._thread = threading.Thread(target=self._loop.run_forever, name="arena-proxy", daemon=True)

    def start(self) -> Self:
        """Listen."""
        self._thread.start()
        self._call(self._set)
        self.accept()
        return self

    def cut(self, direction: Direction | None = None) -> None:
        """Deliver nothing more, in one direction or both."""
        self._call(lambda: self._clear(_DIRECTIONS if direction is None else (direction,)))

    def heal(self) -> None:
        """Deliver again, without delay, what was held back first."""
        self.delay(0.0)
        self._call(self._set)

    def delay(self, seconds: float, direction: Direction | None = None) -> None:
        """Deliver everything that arrives from now on this much later, in one direction or both."""
        for way in _DIRECTIONS if direction is None else (direction,):
            self._delays[way] = seconds

    def reset(self) -> None:
        """End all connections with RST, towards both sides; what was held back is lost."""
        self._await(self._reset)

    def refuse(self) -> None:
        """Refuse new connections (nobody listens); those that exist go on."""
        self._await(self._stop_listening)

    def accept(self) -> None:
        """Take new connections again."""
        self._await(self._listen)

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return self._call(lambda: len(self._connections))

    def close(self) -> None:
        """End everything; may be called twice."""
        if not self._thread.is_alive():
            return
        self.refuse()
        self.reset()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _await(self, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return asyncio.run_coroutine_threadsafe(start(), self._loop).result(30)

    def _call(self, action: Callable[[], T]) -> T:
        async def once() -> T:
            return action()

        return self._await(once)

    def _clear(self, directions: tuple[Direction, ...]) -> None:
        for way in directions:
            self._gates[way].clear()

    def _set(self) -> None:
        for gate in self._gates.values():
            gate.set()

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.start_server(self._serve, self.host, self.port, backlog=256)

    async def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _reset(self) -> None:
        tasks = list(self._connections)
        for writers in self._connections.values():
            for writer in writers:
                _reset(writer)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        writers = self._connections[task] = [writer]
        try:
            await self._gates["to_server"].wait()
            try:
                connection = await self._loop.run_in_executor(None, namespaces.connect, *self.target, self._netns)
                server_reader, server_writer = await asyncio.open_connection(sock=connection)
            except OSError:
                await self._gates["to_client"].wait()
                _reset(writer)
                return
            writers.append(server_writer)
            await asyncio.gather(
                self._carry("to_server", reader, server_writer), self._carry("to_client", server_reader, writer)
            )
        except asyncio.CancelledError:
            # By reset() only. Swallowed, since asyncio reports a cancelled connection handler as an error.
            return
        finally:
            del self._connections[task]
            for each in writers:
                each.close()

    async def _carry(self, way: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue(_HELD_CHUNKS)
        delivery = asyncio.create_task(self._deliver(way, held, writer))
        try:
            while True:
                chunk: bytes | None
                try:
                    chunk = await reader.read(_CHUNK)
                except OSError:
                    chunk = None
                # Also the end of a connection takes its time, and does not come through a cut.
                await held.put((self._loop.time() + self._delays[way], chunk))
                if not chunk:
                    break
            await delivery
        finally:
            delivery.cancel()

    async def _deliver(
        self, way: Direction, held: asyncio.Queue[tuple[float, bytes | None]], writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while True:
                due, chunk = await held.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                await self._gates[way].wait()
                if chunk is None:
                    _reset(writer)
                    return
                if not chunk:
                    writer.write_eof()
                    return
                writer.write(chunk)
                await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST: a linger time of 0 makes the kernel throw away what is unsent and say so to the peer."""
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
