"""The arena's broken links: a cut is silent, nothing is lost by healing it, and a reset is heard."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg2
import pytest

from tests.arena import network
from tests.arena.proxy import TcpProxy
from tests.arena.requirements import require
from tests.arena.servers import Database, Postgres
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 30.0
# How long silence is listened to. Too short can only let a fault pass, never fail a test.
LISTEN = 0.2


class Echo:
    """A server that sends back what it hears, and remembers it."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.heard = b""
        self.ends: list[str] = []
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.echo, args=(connection,), daemon=True).start()

    def echo(self, connection: socket.socket) -> None:
        with connection:
            try:
                while chunk := connection.recv(65536):
                    self.heard += chunk
                    connection.sendall(chunk)
                self.ends.append("end")
            except ConnectionResetError:
                self.ends.append("reset")


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.listener.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[TcpProxy]:
    with TcpProxy("127.0.0.1", echo.port) as proxy:
        yield proxy


def dial(proxy: TcpProxy) -> socket.socket:
    connection = socket.create_connection((proxy.host, proxy.port), timeout=LIMIT)
    connection.sendall(b"hello")
    assert connection.recv(100) == b"hello"
    return connection


def send_all(connection: socket.socket, data: bytes) -> None:
    connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)


def hears_nothing(connection: socket.socket) -> bool:
    connection.settimeout(LISTEN)
    try:
        connection.recv(1)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(LIMIT)
    return False


def test_the_proxy_carries_much_and_the_end_of_it(proxy: TcpProxy, echo: Echo) -> None:
    sent = bytes(range(256)) * 40_000
    with dial(proxy) as connection:
        sender = threading.Thread(target=send_all, args=(connection, sent))
        sender.start()
        received = b""
        while chunk := connection.recv(1 << 20):
            received += chunk
        sender.join()
    assert received == sent
    assert echo.heard == b"hello" + sent
    wait_until(lambda: echo.ends == ["end"] and proxy.connections == 0, LIMIT, "the end of the connection")


def test_a_cut_is_silent_and_what_was_sent_arrives_after_it(proxy: TcpProxy, echo: Echo) -> None:
    with dial(proxy) as connection:
        proxy.cut()
        connection.sendall(b"late")
        assert hears_nothing(connection)
        assert echo.heard == b"hello"
        proxy.heal()
        assert connection.recv(100) == b"late"


def test_the_end_of_a_connection_does_not_come_through_a_cut(proxy: TcpProxy, echo: Echo) -> None:
    connection = dial(proxy)
    proxy.cut()
    connection.close()
    with dial_silently(proxy) as other:
        assert hears_nothing(other)
        assert echo.ends == []
        proxy.heal()
        wait_until(lambda: echo.ends, LIMIT, "the end of the first connection")


def dial_silently(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection((proxy.host, proxy.port), timeout=LIMIT)


def test_a_connection_made_during_a_cut_works_once_it_is_healed(proxy: TcpProxy) -> None:
    proxy.cut()
    with dial_silently(proxy) as connection:
        connection.sendall(b"first")
        assert hears_nothing(connection)
        proxy.heal()
        assert connection.recv(100) == b"first"


def test_a_cut_towards_the_client_lets_the_server_hear(proxy: TcpProxy, echo: Echo) -> None:
    with dial(proxy) as connection:
        proxy.cut("to_client")
        connection.sendall(b"heard")
        wait_until(lambda: echo.heard == b"helloheard", LIMIT, "the server to hear")
        assert hears_nothing(connection)
        proxy.heal()
        assert connection.recv(100) == b"heard"


def test_a_cut_towards_the_server_lets_the_client_hear() -> None:
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as listener,
        TcpProxy("127.0.0.1", listener.getsockname()[1]) as proxy,
        dial_silently(proxy) as client,
        listener.accept()[0] as server,
    ):
        proxy.cut("to_server")
        client.sendall(b"unheard")
        server.sendall(b"heard")
        assert client.recv(100) == b"heard"
        assert hears_nothing(server)
        proxy.heal()
        assert server.recv(100) == b"unheard"


def test_a_reset_is_heard_by_both_sides_and_loses_what_was_held(proxy: TcpProxy, echo: Echo) -> None:
    with dial(proxy) as connection:
        proxy.cut()
        connection.sendall(b"lost")
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
        wait_until(lambda: echo.ends == ["reset"], LIMIT, "the server to hear the reset")
    proxy.heal()
    with dial(proxy):
        assert echo.heard == b"hellohello"


def test_a_refusal_leaves_open_connections_alone(proxy: TcpProxy) -> None:
    with dial(proxy) as connection:
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            dial(proxy)
        connection.sendall(b"still")
        assert connection.recv(100) == b"still"
    proxy.accept()
    dial(proxy).close()


def test_a_delay_holds_up_both_ways_and_ends_when_healed(proxy: TcpProxy) -> None:
    with dial(proxy) as connection:
        proxy.delay(0.1)
        started = time.monotonic()
        connection.sendall(b"slow")
        assert connection.recv(100) == b"slow"
        assert time.monotonic() - started >= 0.2
        proxy.heal()
        connection.sendall(b"again")
        assert connection.recv(100) == b"again"


@pytest.mark.postgres
def test_a_client_of_postgres_is_cut_off_while_the_server_keeps_its_session(postgres: Database) -> None:
    with TcpProxy("127.0.0.1", postgres.server.port) as proxy:
        url = postgres.url(None, host=proxy.host, port=proxy.port, application_name="cut off")
        connection = psycopg2.connect(url)
        proxy.cut()
        connection.close()
        sessions = "select count(*) from pg_stat_activity where application_name = 'cut off'"
        assert postgres.execute(sessions) == [(1,)]
        proxy.reset()
        wait_until(lambda: postgres.execute(sessions) == [(0,)], LIMIT, "the session to end")


def reaches(net: network.Network, source: str, target: str, port: int) -> bool:
    program = f"import socket; socket.create_connection(('{net.host(target).address}', {port}), timeout=0.7)"
    argv = net.run_in(source, [sys.executable, "-c", program])
    return subprocess.run(argv, check=False, stderr=subprocess.DEVNULL).returncode == 0


@pytest.mark.netns
def test_hosts_reach_a_database_until_they_are_cut_off() -> None:
    require(network.available())
    require(Postgres.available())
    with network.Network(["db", "n1", "n2"]) as net:
        db = net.host("db")
        with Postgres(listen=[db.address], netns=db.netns) as postgres:
            assert postgres.execute("select 1") == [(1,)]
            assert f"@{db.address}:" in postgres.url()
            assert reaches(net, "n1", "db", postgres.port)
            assert not reaches(net, "n1", "n2", postgres.port)  # refused
            for way in ("both", "from", "to"):
                net.cut("n1", way)
                assert not reaches(net, "n1", "db", postgres.port)
                assert reaches(net, "n2", "db", postgres.port)
                net.heal("n1")
                assert reaches(net, "n1", "db", postgres.port)
            net.cut_between("n1", "db")
            assert not reaches(net, "n1", "db", postgres.port)
            net.unplug("n2")
            assert not reaches(net, "n2", "db", postgres.port)
            net.heal()
            wait_until(lambda: reaches(net, "n2", "db", postgres.port), LIMIT, "the link to be up again")
            assert reaches(net, "n1", "db", postgres.port)


ASKER = """
import psycopg2, sys
connection = psycopg2.connect(sys.argv[1])
connection.autocommit = True
cursor = connection.cursor()
for line in sys.stdin:
    cursor.execute(line.strip())
    print(cursor.fetchone(), flush=True)
"""


@pytest.mark.netns
def test_a_session_survives_a_short_cut_and_gets_its_answer_late() -> None:
    require(network.available())
    require(Postgres.available())
    with network.Network(["db", "n1"]) as net:
        db = net.host("db")
        with Postgres(listen=[db.address], netns=db.netns) as postgres:
            url = postgres.url(None, application_name="remote")
            argv = net.run_in("n1", [sys.executable, "-c", ASKER, url])
            with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as client:
                assert client.stdin is not None
                assert client.stdout is not None
                client.stdin.write("select 1\n")
                assert client.stdout.readline() == "(1,)\n"
                net.cut("n1", "to")
                client.stdin.write("select 2\n")
                heard = "select 1 from pg_stat_activity where application_name = 'remote' and query = 'select 2'"
                wait_until(lambda: postgres.execute(heard), LIMIT, "the server to hear the question")
                net.heal("n1")
                assert client.stdout.readline() == "(2,)\n"
                client.stdin.close()


@pytest.mark.netns
def test_nothing_is_left_of_a_network() -> None:
    require(network.available())
    with network.Network(["n1"]) as net:
        names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
        assert net.host("n1").netns in names
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert net.host("n1").netns not in names
