"""The example project's README: its commands, typed from the top to the bottom by somebody who has just cloned it."""

from __future__ import annotations

import re
import shutil
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from tests.arena.processes import free_port
from tests.arena.requirements import require
from tests.arena.servers import Postgres
from tests.docs.fences import ROOT, Fence, commands, fences
from tests.docs.terminal import Terminal

if TYPE_CHECKING:
    from pathlib import Path

README = "example_project/README.md"
SERVICE = re.compile(r"celery .* worker |example_project\.services|runserver|flask .* run\b")
"""Commands that a reader leaves running in a terminal of their own."""
END_ALL_BUT_THE_FIRST = (
    "for job in $(jobs -p | tail -n +2); do kill $job; done 2> /dev/null;"
    " for i in $(seq 300); do test $(jobs -rp | wc -l) -le 1 && break; sleep 0.1; done; test $(jobs -rp | wc -l) -eq 1"
)
"""What a reader does with Ctrl-C between two chapters; the first job is the servers."""

FENCES = [fence for fence in fences(README) if fence.language == "console"]


def chapter(fence: Fence) -> str:
    """The heading above it."""
    above = "\n".join((ROOT / README).read_text().splitlines()[: fence.line])
    return str(re.findall(r"^## (.*)$", above, re.MULTILINE)[-1])


def test_what_the_readme_names_is_there() -> None:
    text = (ROOT / README).read_text()
    for path in re.findall(r"example_project/[\w/.-]*\w", text):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"^\| `([\w/.]+)`", text, re.MULTILINE):
        assert (ROOT / "example_project" / name).exists(), name


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.timeout(400)
def test_its_commands_do_what_it_says(tmp_path: Path) -> None:
    require(Postgres.available())
    require(None if shutil.which("curl") else "curl is not installed")
    ports = {port: str(free_port()) for port in ("8000", "5000")}
    ran = 0
    with Terminal(tmp_path, ports) as terminal:
        try:
            for before, fence in pairwise([FENCES[0], *(fence for fence in FENCES if fence.is_run)]):
                if chapter(fence) != chapter(before):
                    terminal.type(END_ALL_BUT_THE_FIRST)
                for command, expected in commands(fence):
                    here = terminal.translate(command)
                    if SERVICE.search(here):
                        terminal.type(f"{here} > service-{ran}.log 2>&1 &")
                    else:
                        terminal.type_until(here, expected)
                    ran += 1
            terminal.type(END_ALL_BUT_THE_FIRST)
            logs = {path.name: path.read_text() for path in tmp_path.glob("service-*.log")}
            assert sum("prices loaded anew" in log for log in logs.values()) == 2, "one worker of each shop is told"
            assert not [name for name, log in logs.items() if "Traceback" in log]
        except Exception as error:
            told = "\n".join(f"--- {path.name}\n{path.read_text()[-2000:]}" for path in tmp_path.glob("*.log"))
            raise AssertionError(f"{error}\n{terminal.log}\n{told}") from error
    assert ran > 25
