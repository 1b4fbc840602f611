"""Message brokers for Celery: Redis, RabbitMQ and plain files; it must not import Celery."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tests.arena import namespaces, processes
from tests.arena.lifecycle import Server, find_binary, is_hidden
from tests.arena.processes import ServerError
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    import socket
    import subprocess
    from collections.abc import Mapping, Sequence


class Redis(Server):
    """A Redis server.

    Args:
        durable: Whether a restart keeps what it has; by default nothing is written to disk.
        listen: The address to listen on.
        netns: A network namespace to run in. `command` works from outside too.
    """

    purpose: ClassVar[str] = "redis"

    def __init__(self, *, durable: bool = False, listen: str = "127.0.0.1", netns: str | None = None) -> None:
        super().__init__(netns=netns)
        self.durable = durable
        self.listen = listen

    @classmethod
    def available(cls) -> str | None:
        """Why it cannot be started here, or None."""
        return None if find_binary("redis-server") and not is_hidden("redis") else "redis-server is not installed"

    def url(self, db: int = 0) -> str:
        """A broker or result backend URL."""
        return f"redis://{self.listen}:{self.port}/{db}"

    def command(self, *words: str) -> str:
        """Send one command and return the raw reply."""
        request = f"*{len(words)}\r\n" + "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
        with namespaces.connect(self.listen, self.port, self.netns) as connection:
            connection.sendall(request.encode())
            return connection.recv(65536).decode()

    def _argv(self) -> Sequence[str]:
        program = find_binary("redis-server")
        if program is None:
            raise ServerError(self.available() or "")
        options = {
            "port": str(self.port),
            "bind": self.listen,
            "protected-mode": "no",
            "dir": str(self.directory),
            "save": "",
            "appendonly": "yes" if self.durable else "no",
            "appendfsync": "always",
        }
        return [str(program), *(word for name, value in options.items() for word in (f"--{name}", value))]

    def _is_ready(self) -> bool:
        try:
            return self.command("PING").startswith("+PONG")
        except OSError:
            return False


class RabbitMQ(Server):
    """A RabbitMQ node of its own, with its own epmd; the user `guest` may do anything. A start takes about 5 s.

    Args:
        listen: The address to listen on.
        netns: A network namespace to run in, whose loopback device is up.
    """

    purpose: ClassVar[str] = "rabbitmq"
    start_timeout: ClassVar[float] = 120.0
    stop_timeout: ClassVar[float] = 90.0

    def __init__(self, *, listen: str = "127.0.0.1", netns: str | None = None) -> None:
        super().__init__(netns=netns, user=processes.account("rabbitmq", "nobody"))
        self.listen = listen
        self._epmd_port = processes.free_port()
        self._dist_port = processes.free_port()
        self._epmd: subprocess.Popen[bytes] | None = None
        self._scripts = self.directory / "scripts.conf"
        self._scripts.write_text("")
        (self.directory / "enabled_plugins").write_text("[].\n")
        (self.directory / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = {listen}:{self.port}\n"
            "loopback_users = none\n"
            "disk_free_limit.absolute = 1MB\n"
            "vm_memory_high_watermark.relative = 0.8\n"
            "log.console = true\nlog.console.level = warning\nlog.file = false\n"
        )
        if self.user:
            self.user.own(self.directory)

    @classmethod
    def available(cls) -> str | None:
        """Why it cannot be started here, or None."""
        if _rabbitmq_program("rabbitmq-server") is None or is_hidden("rabbitmq"):
            return "rabbitmq-server is not installed"
        return None if find_binary("epmd") else "epmd (of Erlang) is not installed"

    def url(self, vhost: str = "") -> str:
        """A broker URL; without a vhost it is the one named "/"."""
        return f"amqp://guest:guest@{self.listen}:{self.port}/{vhost or '/'}"

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl against this node (about 1 s) and return what it wrote."""
        program = _rabbitmq_program("rabbitmqctl")
        if program is None:
            raise ServerError("rabbitmqctl is not installed")
        return processes.run([str(program), "-q", *arguments], user=self.user, env=self._environment())

    def close(self) -> None:
        """End the node and its epmd, and remove the data."""
        super().close()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None

    def _prepare(self) -> None:
        if self._epmd is not None and self._epmd.poll() is None:
            return
        program = find_binary("epmd")
        if program is None:
            raise ServerError(self.available() or "")
        # Started by us and in the foreground: the one that Erlang would start on demand is a daemon for ever.
        self._epmd = processes.spawn(
            [str(program), "-port", str(self._epmd_port), "-address", "127.0.0.1"],
            log=self.directory / "epmd.log",
            user=self.user,
            netns=self.netns,
            env=self._environment(),
        )
        wait_until(lambda: _accepts(self._epmd_port, self.netns), 30, "epmd to start")

    def _environment(self) -> Mapping[str, str]:
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(self.directory),  # of the Erlang cookie
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"arena{self.port}@localhost",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_CONF_ENV_FILE": str(self._scripts),
            "RABBITMQ_CONFIG_FILE": str(self.directory / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.directory / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.directory / "logs"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.directory / "generated"),
            "RABBITMQ_PID_FILE": str(self.directory / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-start_epmd false",
            # The start script then becomes the Erlang machine instead of waiting beside it: one pid to signal.
            "RUNNING_UNDER_SYSTEMD": "1",
        }

    def _argv(self) -> Sequence[str]:
        program = _rabbitmq_program("rabbitmq-server")
        if program is None:
            raise ServerError(self.available() or "")
        return [str(program)]

    def _is_ready(self) -> bool:
        return _accepts_amqp_login(self.listen, self.port, self.netns)


class FilesystemBroker:
    """A broker of plain files below `directory`, without a server; a message in flight is lost at a `kill -9`."""

    def __init__(self, directory: Path, *, polling_interval: float = 0.02) -> None:
        self.directory = directory
        self.polling_interval = polling_interval
        self.messages = directory / "messages"
        self.control = directory / "control"
        for path in (self.messages, self.control):
            path.mkdir(parents=True, exist_ok=True)

    def conf(self) -> dict[str, Any]:
        """What to put into a Celery application's configuration."""
        return {
            "broker_url": "filesystem://",
            "broker_transport": "tests.arena.filesystem:Transport",
            "broker_transport_options": {
                "data_folder_in": str(self.messages),
                "data_folder_out": str(self.messages),
                "control_folder": str(self.control),
                "store_processed": False,
                "polling_interval": self.polling_interval,
            },
        }


def _rabbitmq_program(name: str) -> Path | None:
    # Not the wrapper on the PATH: it changes the user and the directory by itself.
    for home in ("/usr/lib/rabbitmq/bin", "/opt/rabbitmq/sbin"):
        if os.access(f"{home}/{name}", os.X_OK):
            return Path(home) / name
    return find_binary(name)


def _accepts(port: int, netns: str | None) -> bool:
    try:
        namespaces.connect("127.0.0.1", port, netns, 1.0).close()
    except OSError:
        return False
    return True


def _accepts_amqp_login(address: str, port: int, netns: str | None) -> bool:
    """Speak AMQP 0-9-1 until the broker has accepted the login (connection.tune) of guest."""
    try:
        with namespaces.connect(address, port, netns) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            if _read_method(connection) != (10, 10):  # connection.start
                return False
            login = b"\x00guest\x00guest"
            body = b"\x00\x0a\x00\x0b" + (0).to_bytes(4, "big") + b"\x05PLAIN"  # start-ok, no client properties
            body += len(login).to_bytes(4, "big") + login + b"\x05en_US"
            connection.sendall(b"\x01\x00\x00" + len(body).to_bytes(4, "big") + body + b"\xce")
            return _read_method(connection) == (10, 30)  # connection.tune
    except (OSError, EOFError):
        return False


def _read_method(connection: socket.socket) -> tuple[int, int]:
    header = _read_exactly(connection, 7)
    payload = _read_exactly(connection, int.from_bytes(header[3:7], "big") + 1)
    return int.from_bytes(payload[0:2], "big"), int.from_bytes(payload[2:4], "big")


def _read_exactly(connection: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        chunk = connection.recv(count - len(received))
        if not chunk:
            raise EOFError
        received += chunk
    return received
