"""A PgBouncer in front of a PostgreSQL server; it knows nothing of locks or elections."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import psycopg2

from tests.arena import processes
from tests.arena.lifecycle import Server, find_binary
from tests.arena.postgres import Postgres
from tests.arena.postgres_binaries import SUPERUSER
from tests.arena.processes import ServerError

if TYPE_CHECKING:
    from collections.abc import Sequence

PoolMode = Literal["session", "transaction", "statement"]


class PgBouncer(Server):
    """A pooler that lets every user in `users` through to any database of `postgres`, without passwords.

    Args:
        postgres: The server behind it.
        pool_mode: `session` or `transaction`, mostly.
        pool_size: Connections to the server per user and database.
        ignored_parameters: Start-up parameters that are swallowed; PgBouncer's own default, none, refuses `options`.
    """

    purpose: ClassVar[str] = "pgbouncer"

    def __init__(
        self,
        postgres: Postgres,
        pool_mode: PoolMode = "transaction",
        *,
        pool_size: int = 20,
        users: Sequence[str] = (SUPERUSER,),
        ignored_parameters: Sequence[str] = ("extra_float_digits", "options"),
    ) -> None:
        super().__init__(user=processes.account("postgres", "nobody"))
        self.postgres = postgres
        self.pool_mode = pool_mode
        self._configuration = self.directory / "pgbouncer.ini"
        (self.directory / "users").write_text("".join(f'"{user}" ""\n' for user in users))
        self._configuration.write_text(
            f"[databases]\n* = host={postgres.listen[0]} port={postgres.port}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = trust\nauth_file = {self.directory / 'users'}\nadmin_users = {SUPERUSER}\n"
            f"pool_mode = {pool_mode}\ndefault_pool_size = {pool_size}\nmax_client_conn = 500\n"
            f"ignore_startup_parameters = {','.join(ignored_parameters)}\n"
        )
        if self.user:
            self.user.own(self.directory)

    @classmethod
    def available(cls) -> str | None:
        """Why it cannot be started here, or None."""
        return Postgres.available() or (None if find_binary("pgbouncer") else "pgbouncer is not installed")

    def url(self, driver: str | None = "psycopg2", **options: Any) -> str:
        """As `Postgres.url`, through the pooler."""
        return self.postgres.url(driver, host="127.0.0.1", port=self.port, **options)

    def _argv(self) -> Sequence[str]:
        program = find_binary("pgbouncer")
        if program is None:
            raise ServerError(self.available() or "")
        return [str(program), str(self._configuration)]

    def _is_ready(self) -> bool:
        try:
            # Its own console, so that no connection to the server is made.
            with closing(psycopg2.connect(self.url(None, dbname="pgbouncer"), connect_timeout=5)):
                return True
        except psycopg2.OperationalError:
            return False
