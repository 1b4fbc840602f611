"""What the documentation says of the code is what the code says: nothing is left out, nothing is out of date."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pytest

import celery_highlander
from celery_highlander.config import PREFIX, Settings
from celery_highlander.election.contest import Phase
from celery_highlander.election.protocol import TRANSITIONS
from celery_highlander.errors import ERRORS_BY_CODE
from celery_highlander.store import migrations
from celery_highlander.worker.metrics import METRICS, REASONS
from tests.docs.fences import PAGES, ROOT

if TYPE_CHECKING:
    from pathlib import Path

GUARANTEES = ROOT / "docs/explanation/guarantees.md"
_NAMED = re.compile(r"`(\w+/test_\w+\.py)::(test_\w+)`")


def _load(name: str) -> Any:
    """One of the generators of the documentation."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs/_ext" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generated() -> Any:
    return _load("generated")


def filled_in(generated: Any, page: str) -> str:
    text: str = generated.fill_in((ROOT / "docs/reference" / page).read_text())
    return text


def test_the_documentation_builds_without_a_warning_and_needs_no_network(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", str(tmp_path)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    fetched = {
        found
        for page in tmp_path.rglob("*.html")
        for found in re.findall(r"<(?:script|img|link)\b[^>]*?\b(?:src|href)=\"(https?://[^\"]+)", page.read_text())
    }
    assert fetched == set()
    assert "election-states.svg" in (tmp_path / "explanation/election.html").read_text()


def test_the_picture_of_the_states_is_that_of_the_table() -> None:
    states = _load("states")
    svg = states.SVG.read_text()
    assert svg == states.svg(), "run: python docs/_ext/states.py"
    assert all(f">{phase.value}<" in svg for phase in Phase)
    moves = {(before, after) for (before, _), (_, afters) in TRANSITIONS.items() for after in afters if before != after}
    assert svg.count('class="arrow"') == len(moves)


def test_every_setting_is_in_the_reference(generated: Any) -> None:
    page = filled_in(generated, "settings.md")
    missing = [spec.name for spec in fields(Settings) if f"#{PREFIX}{spec.name}}}" not in page]
    assert missing == []
    assert "## More" not in page, "a setting belongs to no section"


def test_every_public_name_is_in_the_reference(generated: Any) -> None:
    pages = filled_in(generated, "api.md") + filled_in(generated, "events-and-signals.md")
    assert [name for name in celery_highlander.__all__ if not re.search(rf"\b{name}\b", pages)] == []


def test_every_command_has_its_help_in_the_reference(generated: Any) -> None:
    from celery_highlander.cli import highlander

    page = filled_in(generated, "cli.md")
    assert [name for name in highlander.commands if f"\n## {name}\n" not in page] == []
    assert all(
        len(line) <= 80 for block in re.findall(r"```text\n(.*?)```", page, re.DOTALL) for line in block.split("\n")
    )


def test_every_error_and_every_table_is_in_the_reference(generated: Any) -> None:
    page = filled_in(generated, "errors.md")
    assert [code for code in ERRORS_BY_CODE if f"`{code}`" not in page] == []
    tables = set(re.findall(r"create (?:unlogged )?table \w* ?\w* ?\w* ?highlander_(\w+)", migrations.script("")))
    page = filled_in(generated, "tables.md")
    assert len(tables) >= 9
    assert [name for name in tables if f"## highlander_{name}\n" not in page] == []


def test_every_metric_is_in_the_reference(generated: Any) -> None:
    page = filled_in(generated, "metrics.md")
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        assert f"| `celery_highlander_{metric.name}` | {metric.kind} | {labels} | {metric.text} |" in page
    for _, name in REASONS:
        assert f"`{name}`" in page


def test_what_the_code_has_and_nobody_has_described_stops_the_build(
    generated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generated.monitoring, "UNHEARD_OF", "highlander-unheard-of", raising=False)
    with pytest.raises(KeyError, match="highlander-unheard-of"):
        generated.events()


def _tests_of(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_guarantee_names_tests_that_are_there() -> None:
    text = GUARANTEES.read_text().partition("## What is not promised")[0]
    sentences = re.findall(r"^- (.*?)(?=^- |^$)", text, re.MULTILINE | re.DOTALL)
    assert len(sentences) > 40
    assert [sentence for sentence in sentences if not _NAMED.search(sentence)] == []
    named = {match for sentence in sentences for match in _NAMED.findall(sentence)}
    missing = [
        f"{file}::{test}"
        for file, test in sorted(named)
        if not (ROOT / "tests" / file).exists() or test not in _tests_of(ROOT / "tests" / file)
    ]
    assert missing == []


def test_every_test_file_that_a_page_names_is_there() -> None:
    named = {
        (page, name)
        for page in PAGES
        for name in re.findall(
            r"\btests/(\w+/\w+\.py)|`((?:contract|faults|integration|unit)/test_\w+)(?:\.py)?`",
            (ROOT / page).read_text(),
        )
    }
    missing = [
        f"{page}: {name}"
        for page, names in named
        for name in filter(None, names)
        if not (ROOT / "tests" / name).with_suffix(".py").exists()
    ]
    assert missing == []


def test_every_page_that_the_readme_links_to_is_there() -> None:
    readme = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(((?:docs/|\w+\.md)[^)#]*)", readme)
    assert len(links) > 8
    assert [link for link in links if not (ROOT / link).exists()] == []
