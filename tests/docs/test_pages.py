"""Every page: its blocks of code run, its commands exist, the tests it names exist, and all of it builds."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import types
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import click
import pytest
import yaml
from celery import Celery

from celery_highlander import Highlander, SingletonTask
from celery_highlander.cli import highlander as commands
from celery_highlander.config import Settings
from celery_highlander.errors import ERRORS_BY_CODE
from celery_highlander.testing import FakeLeadership
from celery_highlander.worker.metrics import METRICS, PREFIX
from tests.arena.waiting import wait_until
from tests.docs.pages import MODULES, ROOT

if TYPE_CHECKING:
    from pathlib import Path

PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    if not {"generated", "_build"} & set(path.parts)
)
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

NOT_RUN = {
    "docs/tutorial/first-failover.md": "an excerpt of example_project/shop.py, which the tutorial's own test runs",
    "docs/explanation/celery.md": "excerpts of Celery's source",
}
"""Pages whose Python is compiled, and not run, and why."""

NEEDS_DJANGO = "from django"
"""Run in tests/acceptance, where there is a Django project."""


@dataclass(frozen=True, slots=True)
class Block:
    page: str
    line: int
    language: str
    source: str


def blocks(*languages: str) -> list[Block]:
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text()
        found += [
            Block(page, text.count("\n", 0, match.start()) + 2, match[1], match[2])
            for match in _BLOCK.finditer(text)
            if match[1] in languages
        ]
    return found


def ids(block: Block) -> str:
    return f"{block.page}:{block.line}"


def names() -> dict[str, object]:
    """What the pages take for granted."""
    app = Celery("shop", set_as_current=False)
    app.conf.highlander_url = "postgresql+psycopg2://app@db/shop"
    leadership = FakeLeadership("ledger")

    @app.task(name="shop.sync_account")
    def sync_account(account_id: int) -> None: ...

    return {"app": app, "highlander": Highlander(app), "leadership": leadership, "sync_account": sync_account}


@pytest.mark.parametrize("block", blocks("python"), ids=ids)
def test_a_block_of_python_runs(block: Block) -> None:
    source = "\n" * (block.line - 1) + block.source
    code = compile(source, str(ROOT / block.page), "exec")
    if block.page in NOT_RUN or block.page in MODULES.values() or NEEDS_DJANGO in block.source:
        return  # those of singleton tasks are run by test_guides
    tree = ast.parse(source)
    module = types.ModuleType("page")
    module.__dict__.update(names())
    sys.modules["page"] = module
    top = [node for node in tree.body if not isinstance(node, (ast.With, ast.While, ast.For))]
    executed = code if len(top) == len(tree.body) else compile(ast.Module(top, []), block.page, "exec")
    if "create_app()" in block.source and "def create_app" not in block.source:
        return  # the second half of the block before it
    try:
        exec(executed, module.__dict__)
    finally:
        del sys.modules["page"]


def test_the_tests_that_a_page_shows_pass() -> None:
    page = "docs/how-to/test.md"
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.highlander_url = "postgresql+psycopg2://app@db/shop"
    Highlander(app)
    shown: dict[str, Any] = {"app": app}
    ran = 0

    @app.task(name="shown.sync_account", base=SingletonTask, singleton={"unique_on": ["account_id"]})
    def sync_account(account_id: str) -> None: ...

    shown["sync_account"] = sync_account
    for block in blocks("python"):
        if block.page == page:
            exec(compile("\n" * (block.line - 1) + block.source, str(ROOT / page), "exec"), shown)
    for name, function in list(shown.items()):
        if (
            name.startswith("test_") and not inspect.signature(function).parameters
        ):  # else of fixtures: test_testing_page
            function()
            ran += 1
    assert ran == 7


@pytest.mark.parametrize("block", blocks("yaml", "json", "ini", "toml"), ids=ids)
def test_a_block_of_configuration_can_be_read(block: Block) -> None:
    assert (json.loads if block.language == "json" else yaml.safe_load)(block.source)


def shown_commands() -> list[tuple[str, list[str]]]:
    """Every `celery … highlander …` of a page, with its words behind that."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text()
        for match in re.finditer(r"celery -A \S+ highlander ([^`#|\n]*)", text):
            words = shlex.split(match[1].split(" |")[0].replace("…", "").rstrip(").,;:").split(")")[0])
            if words and words[0].isidentifier() | ("-" in words[0]):
                found.append((page, words))
    return found


@pytest.mark.parametrize(("page", "words"), shown_commands(), ids=lambda value: str(value)[:60])
def test_a_command_that_a_page_shows_exists(page: str, words: list[str]) -> None:
    command = commands.commands.get(words[0])
    assert command is not None, f"{page}: no command {words[0]!r}"
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words[1:]:
        if word.startswith("--"):
            assert word.partition("=")[0] in known | {"--help"}, f"{page}: {words[0]} has no option {word!r}"
    assert isinstance(command, click.Command)


def test_every_test_that_a_guarantee_names_exists() -> None:
    text = (ROOT / "docs/explanation/guarantees.md").read_text()
    named = re.findall(r"`((?:unit|contract|integration|faults)/[\w/]+\.py)`", text)
    assert len(named) > 30
    assert [name for name in named if not (ROOT / "tests" / name).is_file()] == []
    for row in re.findall(r"^\| [A-Z].*\|$", text.partition("## What cannot be had")[0], re.MULTILINE):
        assert "/test_" in row, row


def test_the_generated_reference_has_everything() -> None:
    sys.path.insert(0, str(ROOT / "docs" / "_ext"))
    try:
        import diagram  # type: ignore[import-not-found]
        import reference  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    pages = reference.pages()
    for spec in fields(Settings):
        assert f"`highlander_{spec.name}`" in pages["settings"]
    for name in commands.commands:
        assert f"## `{name}`" in pages["commands"]
    for metric in METRICS:
        assert f"`{PREFIX}{metric.name}`" in pages["metrics"]
    for code, kind in ERRORS_BY_CODE.items():
        assert f"| `{kind.__name__}` | `{code}` | {kind.__name__[:0]}" in pages["errors"]
    assert "create table highlander_order" in pages["tables"]
    picture = diagram.svg()
    for phase in diagram.Phase:
        assert f">{phase.value}</text>" in picture
    assert picture.count("marker-end") == len(diagram.edges())


def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", str(tmp_path)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "reference" / "settings.html").read_text().count("highlander_") > len(fields(Settings))


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.timeout(300)
def test_the_tutorial_works_line_by_line(tmp_path: Path) -> None:
    page = "docs/tutorial/first-failover.md"
    lines = [
        line.removeprefix("$ ").replace(".venv/bin/python", shlex.quote(sys.executable))
        for block in blocks("console")
        if block.page == page
        for line in block.source.splitlines()
        if line.startswith("$ ")
    ]
    celery = str(ROOT / ".venv/bin/celery") if (ROOT / ".venv/bin/celery").exists() else "celery"
    services, *rest = [line.replace(".venv/bin/celery", celery) for line in lines if line != "make venv"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    log = (tmp_path / "services.log").open("w")
    running = subprocess.Popen(
        ["bash", "-c", f"exec {services}"], cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT
    )
    try:
        wait_until((tmp_path / "shop.env").exists, 60, "the services to be up")
        script = "\n".join(["set -e", *_patient(rest)])
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        print(done.stdout, done.stderr)
        assert done.returncode == 0
        assert "payment 1" in done.stdout
        logs = "".join(path.read_text() for path in tmp_path.glob("w?.log"))
        assert len(set(re.findall(r": payment (\d+): 19.99", logs))) == 5
        assert "stepped down from highlander" in done.stdout
        assert "price_feed is paused" in done.stdout
        assert "price_feed is resumed" in done.stdout
        assert "█" in done.stdout
    finally:
        subprocess.run(["bash", "-c", "kill -9 $(cat w?.pid) 2> /dev/null"], cwd=tmp_path, check=False)
        running.send_signal(signal.SIGINT)
        running.wait(30)
        log.close()


def _patient(lines: list[str]) -> list[str]:
    """The lines, with a reader's patience: a look at the status is repeated until everything is led."""
    again = ("highlander status", "w3.log")
    return [
        f"for i in $(seq 60); do {line} && break; sleep 0.5; done" if line.endswith(again) else line for line in lines
    ]
