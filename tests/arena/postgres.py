"""A PostgreSQL server that a test may stop, kill, pause and promote; it knows nothing of locks or elections."""

from __future__ import annotations

import signal
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from urllib.parse import quote, urlencode

import psycopg2
import psycopg2.sql

from tests.arena import postgres_binaries, processes
from tests.arena.lifecycle import Server
from tests.arena.postgres_binaries import SUPERUSER, Installation
from tests.arena.processes import ServerError
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

StopMode = Literal["smart", "fast", "immediate"]
_STOP_SIGNALS: dict[str, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
_SETTINGS: dict[str, str | int] = {
    "max_connections": 200,
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "replica",
    "max_wal_senders": 10,
    "wal_keep_size": "256MB",
    "hot_standby": "on",
    "lc_messages": "C",
    "log_line_prefix": "%m [%p] %a ",
}
_HBA = """\
local all all trust
local replication all trust
host all all 0.0.0.0/0 trust
host replication all 0.0.0.0/0 trust
"""


class Postgres(Server):
    """A PostgreSQL server with a superuser `postgres`, trusting everybody who reaches it.

    Args:
        installation: Whose programs to run; the preferred installation by default.
        listen: Addresses to listen on; the first is the host in `url()`.
        netns: A network namespace to run in. `execute` works from outside too: it uses the Unix socket.
        settings: Further lines for postgresql.conf.
        fresh: Run initdb rather than copy a template, for a system identifier of its own.
        env: Further environment of the server.
    """

    purpose: ClassVar[str] = "postgres"
    # Immediate shutdown: the postmaster takes all its children with it.
    death_signal: ClassVar[signal.Signals] = signal.SIGQUIT
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT

    def __init__(
        self,
        *,
        installation: Installation | None = None,
        listen: Sequence[str] = ("127.0.0.1",),
        netns: str | None = None,
        settings: Mapping[str, str | int] | None = None,
        fresh: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.installation = installation or postgres_binaries.preferred()
        super().__init__(netns=netns, user=postgres_binaries.account())
        self.listen = tuple(listen)
        self.data = self.directory / "data"
        self._settings = {**_SETTINGS, **(settings or {})}
        self._fresh = fresh
        self._env = env
        if self.user:
            self.user.own(self.directory)

    @classmethod
    def available(cls) -> str | None:
        """Why it cannot be started here, or None."""
        return postgres_binaries.reason_without()

    @property
    def version(self) -> int:
        """The major version."""
        return self.installation.version

    @property
    def socket_directory(self) -> Path:
        """Where its Unix socket is."""
        return self.directory

    def url(
        self,
        driver: str | None = "psycopg2",
        *,
        dbname: str = "postgres",
        user: str = SUPERUSER,
        password: str | None = None,
        host: str | None = None,
        port: int | None = None,
        **query: str,
    ) -> str:
        """A SQLAlchemy URL, or a plain libpq one with `driver=None`; `host` and `port` for a way through a proxy."""
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        login = quote(user, safe="") + (f":{quote(password, safe='')}" if password is not None else "")
        tail = f"?{urlencode(query, quote_via=quote)}" if query else ""
        return f"{scheme}://{login}@{host or self.listen[0]}:{port or self.port}/{quote(dbname, safe='')}{tail}"

    def stop(self, mode: StopMode = "fast") -> None:
        """Shut down; `immediate` is what a crash looks like to the next start."""
        self._end(_STOP_SIGNALS[mode])

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start, on the same port and data."""
        self.stop(mode)
        self.start()

    def close(self) -> None:
        """End the server at once and remove its data."""
        if self.is_running:
            # Not killed: a killed postmaster leaves its shared memory segment behind.
            self.stop("immediate")
        super().close()

    def execute(self, statement: str, *parameters: object, dbname: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement on a connection of its own, in autocommit; the rows, or [] where there are none."""
        with closing(self._connect(dbname)) as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def create_database(self, name: str) -> Database:
        """Make an empty database."""
        self.execute(f'create database "{name}"')
        return Database(self, name)

    def drop_database(self, name: str) -> None:
        """Drop it, whoever is connected."""
        self.execute(f'drop database if exists "{name}" with (force)')

    def terminate_backends(self, application_name_like: str) -> int:
        """pg_terminate_backend for every session whose application_name is LIKE this; how many there were."""
        rows = self.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name like %s and pid <> pg_backend_pid()",
            application_name_like,
        )
        return len(rows)

    def standby(
        self,
        *,
        synchronous: bool = False,
        through: tuple[str, int] | None = None,
        netns: str | None = None,
        listen: Sequence[str] = ("127.0.0.1",),
        settings: Mapping[str, str | int] | None = None,
    ) -> Standby:
        """A started hot standby that streams from this server.

        Args:
            synchronous: Make commits on this server wait for it (`remote_apply` is not set, so: until flushed).
            through: Host and port to stream from, where that is not this server's own address: a proxy.
            netns: A network namespace for the standby.
            listen: The standby's addresses.
            settings: Further lines for the standby's postgresql.conf.
        """
        standby = Standby(self, through or (self.listen[0], self.port), netns=netns, listen=listen, settings=settings)
        try:
            standby.start()
            if synchronous:
                self.execute(f"alter system set synchronous_standby_names = '{standby.name}'")
                self.execute("select pg_reload_conf()")
                wait_until(
                    lambda: self.execute(
                        "select 1 from pg_stat_replication where application_name = %s and sync_state = 'sync'",
                        standby.name,
                    ),
                    self.start_timeout,
                    "the standby to be synchronous",
                )
        except BaseException:
            standby.close()
            raise
        return standby

    def _connect(self, dbname: str) -> Any:
        connection = psycopg2.connect(
            host=str(self.socket_directory),
            port=self.port,
            user=SUPERUSER,
            dbname=dbname,
            connect_timeout=10,
            client_encoding="utf8",
            application_name="arena",
        )
        connection.autocommit = True
        return connection

    def _make_data(self) -> None:
        self.installation.make_cluster(self.data, self.user, fresh=self._fresh)

    def _prepare(self) -> None:
        if self.data.exists():
            return
        self._make_data()
        settings = {
            **self._settings,
            "listen_addresses": ",".join(self.listen),
            "port": self.port,
            "unix_socket_directories": str(self.socket_directory),
        }
        lines = [f"{name} = '{str(value).replace(chr(39), chr(39) * 2)}'\n" for name, value in settings.items()]
        (self.data / "postgresql.conf").write_text("".join(lines))
        (self.data / "pg_hba.conf").write_text(_HBA)

    def _argv(self) -> Sequence[str]:
        # For the server alone, not for the programs that change the user and so on before it is run.
        env = ["env", *(f"{name}={value}" for name, value in self._env.items())] if self._env else []
        return [*env, self.installation.program("postgres"), "-D", str(self.data)]

    def _is_ready(self) -> bool:
        try:
            self._connect("postgres").close()
        except psycopg2.OperationalError:
            return False
        return True


class Standby(Postgres):
    """A streaming hot standby; `Postgres.standby()` makes one."""

    purpose: ClassVar[str] = "standby"

    def __init__(
        self,
        primary: Postgres,
        source: tuple[str, int],
        *,
        netns: str | None,
        listen: Sequence[str],
        settings: Mapping[str, str | int] | None,
    ) -> None:
        super().__init__(installation=primary.installation, listen=listen, netns=netns, settings=settings)
        self.name = f"standby_{self.port}"
        self._primary = primary
        self._settings["primary_conninfo"] = (
            f"host={source[0]} port={source[1]} user={SUPERUSER} application_name={self.name} connect_timeout=5"
        )
        self._settings["recovery_target_timeline"] = "latest"

    def promote(self) -> None:
        """Make it a primary; returns once it accepts writes."""
        if self.execute("select pg_promote(true, 60)") != [(True,)]:
            raise ServerError(f"the standby was not promoted\n{self.log_tail()}")

    def wait_for_replay(self, timeout: float = 30.0) -> None:
        """Wait until everything that the primary has written so far can be read here."""
        target = self._primary.execute("select pg_current_wal_lsn()::text")[0][0]
        wait_until(
            lambda: self.execute("select pg_last_wal_replay_lsn() >= %s::pg_lsn", target)[0][0],
            timeout,
            f"the standby to replay up to {target}",
        )

    def _make_data(self) -> None:
        source = ["-h", str(self._primary.socket_directory), "-p", str(self._primary.port), "-U", SUPERUSER]
        program = self.installation.program("pg_basebackup")
        processes.run(
            [program, *source, "-D", str(self.data), "-X", "stream", "-c", "fast", "--no-sync"], user=self.user
        )
        (self.data / "standby.signal").touch()
        (self.data / "postgresql.auto.conf").write_text("")


@dataclass(frozen=True, slots=True)
class Database:
    """One database of a server, as a test's own."""

    server: Postgres
    name: str

    def url(self, driver: str | None = "psycopg2", **options: Any) -> str:
        """As `Postgres.url`, for this database."""
        return self.server.url(driver, dbname=self.name, **options)

    def execute(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """As `Postgres.execute`, in this database."""
        return self.server.execute(statement, *parameters, dbname=self.name)

    def drop(self) -> None:
        """Drop it, whoever is connected."""
        self.server.drop_database(self.name)
