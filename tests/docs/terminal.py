"""A reader at a terminal: writes a page's files, types its commands, and waits for what the page says they print."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from tests.docs.declare import PREAMBLE, SHOP, URL
from tests.docs.fences import HAPPENS, ROOT, Fence, commands, fences

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

PATIENCE = 60.0
"""Seconds in which a command has to print what the page says, tried again and again."""

_PAUSE = 0.3
_SERVICE = re.compile(r"celery .*\b(worker|beat)\b(?!.*&$)")


class Terminal:
    """A shell in a directory of its own; a context manager that ends what was started in it.

    Args:
        directory: where the page's files are written, and its commands run.
        words: what stands in the page, and what takes its place here: addresses of servers.
    """

    def __init__(self, directory: Path, words: Mapping[str, str]) -> None:
        self.directory = directory
        self._words = words
        self._sources: dict[str, str] = {}
        self._name = SHOP
        self._services = 0
        self.log = ""

    def __enter__(self) -> Self:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "PYTHONWARNINGS": "ignore"}
        self._shell = subprocess.Popen(
            ["bash", "--noprofile", "--norc", "-m"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.directory,
            env=env,
            text=True,
            start_new_session=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.type("kill $(jobs -p) 2> /dev/null; wait", check=False)
        self._shell.kill()
        self._shell.wait()
        for stream in (self._shell.stdin, self._shell.stdout):
            if stream is not None:
                stream.close()

    def _read(self) -> None:
        assert self._shell.stdout is not None
        with contextlib.suppress(ValueError):  # closed
            for line in self._shell.stdout:
                self._lines.put(line.rstrip("\n"))

    # -- typing --------------------------------------------------------------------------------------------------------

    def type(self, command: str, *, check: bool = True) -> str:
        """Run one command; return what was printed meanwhile."""
        assert self._shell.stdin is not None
        mark = uuid4().hex
        self._shell.stdin.write(f"{command}\nprintf '\\n{mark} %s\\n' $?\n")
        self._shell.stdin.flush()
        printed: list[str] = []
        while True:
            line = self._lines.get(timeout=PATIENCE)
            if line.startswith(mark):
                break
            printed.append(line)
        text = "\n".join(printed)
        self.log += f"$ {command}\n{text}\n"
        status = int(line.split()[1])
        if check and status:
            raise CommandError(f"{command!r} ended with {status}:\n{text}")
        return text

    def type_until(self, command: str, expected: list[str]) -> None:
        """Run a command until it ends well, and prints what is expected."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                text = self.type(command)
                missing = first_missing(expected, text.splitlines())
                if missing is None:
                    return
                problem = f"{command!r} prints no line like {missing!r}, but:\n{text}"
            except CommandError as error:
                problem = str(error)
            if time.monotonic() > deadline:
                raise AssertionError(problem)
            time.sleep(_PAUSE)

    def _await(self, expected: list[str]) -> None:
        """Wait until something in the background has printed what is expected."""
        printed: list[str] = []
        deadline = time.monotonic() + PATIENCE
        while (missing := first_missing(expected, printed)) is not None:
            assert time.monotonic() < deadline, f"no line like {missing!r}, but: {printed}"
            printed += self.type("sleep 0.1").splitlines()

    # -- pages ---------------------------------------------------------------------------------------------------------

    def follow(self, page: str) -> None:
        """Do what the page says, from the top to the bottom."""
        place = page
        try:
            for fence in fences(page):
                place = fence.place
                if fence.is_run:
                    self._follow(fence)
        except (AssertionError, CommandError) as error:
            raise AssertionError(f"{place}: {error}\n\n{self.log[-5000:]}\n{self._logs()}") from error

    def _follow(self, fence: Fence) -> None:
        source = self.translate(fence.source)
        if fence.language == "python" and fence.first_line == HAPPENS:
            module = self._name.removesuffix(".py")
            script = self.directory / "happens.py"
            script.write_text(f"from {module} import *\n{source}")
            self._start_worker_if_there_is_none()
            self.type_until("python happens.py", [])
        elif fence.language == "python":
            self._write(fence, source)
        elif fence.language == "console":
            for command, expected in commands(fence):
                self._do(self.translate(command), expected)
            self._await_services()  # each with the files as they are now

    def translate(self, text: str) -> str:
        """Put the addresses of this machine's servers in."""
        for word, here in self._words.items():
            text = text.replace(word, here)
        return text

    def _write(self, fence: Fence, source: str) -> None:
        if fence.file:
            self._name = fence.file
        known = self._sources.get(self._name)
        if known is None:
            known = self.translate(PREAMBLE) if self._name == SHOP and "Celery(" not in source else ""
        self._sources[self._name] = f"{known}\n\n{source}"
        (self.directory / self._name).write_text(self._sources[self._name])

    def _do(self, command: str, expected: list[str]) -> None:
        if command.startswith("celery") and not self._sources:
            self._sources[SHOP] = self.translate(PREAMBLE)
            (self.directory / SHOP).write_text(self._sources[SHOP])
        if _SERVICE.match(command):
            self._services += 1
            if self._services > 1 and "worker" in command:
                command += f" -n celery{self._services}@localhost"
            self.type(f"{command} > service-{self._services}.log 2>&1 &")
        elif command.endswith("&"):
            self.type(command)
            self._await(expected)
        elif expected or command.startswith("celery"):
            self.type_until(command, expected)
        else:
            self.type(command)

    def _await_services(self) -> None:
        """Wait until every worker and beat that was started takes part, and see that none has ended."""
        deadline = time.monotonic() + PATIENCE
        nodes: list[object] = []
        while len(nodes) < self._services:
            assert time.monotonic() < deadline, f"{self._services} were started, and these take part: {nodes}"
            with contextlib.suppress(CommandError):  # before the tables are there
                nodes = json.loads(self.type("celery -A shop highlander status --nodes --json"))["nodes"]
        if self._services:
            self.type(f"test $(jobs -rp | wc -l) -eq {self._services}")

    def _start_worker_if_there_is_none(self) -> None:
        if not self._services:
            self._do(f"celery -A {self._name.removesuffix('.py')} worker", [])

    def _logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in self.directory.glob("*.log"))


class CommandError(Exception):
    """A command ended with another exit code than 0."""


def first_missing(expected: list[str], printed: list[str]) -> str | None:
    """Return the first expected line that does not come, after those before it; None where all do.

    Numbers of more than one digit, times and durations may be others; `...` stands for anything; names of workers in a
    sentence may be others, too.
    """
    rest = iter(printed)
    for line in expected:
        if not line.strip() or line.strip() == "...":
            continue
        pattern = _pattern(line)
        if not any(pattern.fullmatch(" ".join(found.split())) for found in rest):
            return line
    return None


def _pattern(line: str) -> re.Pattern[str]:
    words = []
    for word in line.split():
        if "..." in word:
            words.append(".*".join(map(re.escape, word.split("..."))))
        elif "@" in word and line.rstrip().endswith("."):
            words.append(r"\S+")
        else:
            words.append(word if re.fullmatch(r"\d", word) else re.sub(r"\d+", r"[\\d.]+", re.escape(word)))
    return re.compile(" ".join(words))


def addresses(url: str, broker: str, results: str) -> dict[str, str]:
    """What stands in the pages for servers, and where they are here."""
    return {
        "postgresql+psycopg2://postgres@127.0.0.1:54329/postgres": url,
        URL: url,
        '"amqp://"': repr(broker),
        '"redis://results"': repr(results),
    }
