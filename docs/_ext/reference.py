"""The parts of the reference that are written from the code: settings, commands, metrics, errors, tables."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING

import click

from celery_highlander import errors
from celery_highlander.cli import highlander
from celery_highlander.config import Settings
from celery_highlander.store import migrations
from celery_highlander.worker.highlander import WORKER_OPTIONS
from celery_highlander.worker.metrics import METRICS, PREFIX, REASONS

if TYPE_CHECKING:
    from collections.abc import Callable


def pages() -> dict[str, str]:
    """Return every generated page by its name."""
    made: dict[str, Callable[[], str]] = {
        "settings": settings,
        "commands": commands,
        "metrics": metrics,
        "errors": errors_,
        "tables": tables,
        "compatibility": compatibility,
    }
    return {name: make() for name, make in made.items()}


def attributes(kind: type) -> dict[str, str]:
    """Return what a class says of its attributes in its docstring, by name."""
    text = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        begins = re.match(r"    (\w+): (.*)", line)
        if begins:
            name = begins[1]
            found[name] = begins[2]
        elif name and line.startswith("        "):
            found[name] += " " + line.strip()
    return found


def settings() -> str:
    """Return the table of settings."""
    said = attributes(Settings)
    lines = ["| setting | default | |", "|---|---|---|"]
    for spec in fields(Settings):
        default = spec.default_factory() if spec.default_factory is not MISSING else spec.default
        shown = "" if default in ("", None) else f"`{default!r}`"
        if isinstance(default, tuple):
            shown = f"`{list(default)!r}`"
        lines.append(f"| `highlander_{spec.name}` | {shown} | {_sentence(said[spec.name])} |")
    return "\n".join(lines) + "\n"


def _sentence(text: str) -> str:
    return (text[0].upper() + text[1:]).replace("|", "\\|")


def commands() -> str:
    """Return the help of every command, and the options of `celery worker`."""
    lines = ["## `celery highlander`", "", _help(highlander, "celery -A proj highlander")]
    for name in sorted(highlander.commands):
        lines += [f"## `{name}`", "", _help(highlander.commands[name], f"celery -A proj highlander {name}")]
    lines += ["## Options of `celery worker`", "", "| option | |", "|---|---|"]
    for option in WORKER_OPTIONS:
        words = "/".join([*option.opts, *option.secondary_opts])
        lines.append(f"| `{words}` | {option.help} |")
    return "\n".join(lines) + "\n"


def _help(command: click.Command, path: str) -> str:
    with click.Context(command, info_name=path, max_content_width=90, terminal_width=90) as context:
        return f"```text\n{command.get_help(context)}\n```\n"


def metrics() -> str:
    """Return the table of metrics, and of the classes of reasons."""
    lines = ["| metric | type | labels | |", "|---|---|---|---|"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{PREFIX}{metric.name}` | {metric.kind} | {labels} | {metric.text} |")
    classes = ", ".join(f"`{name}`" for name in sorted({name for _, name in REASONS} | {"database", "elected"}))
    return "\n".join([*lines, "", f"Classes of reasons: {classes}.", ""])


def errors_() -> str:
    """Return the table of errors."""
    lines = ["| error | code | |", "|---|---|---|"]
    lines += [
        f"| `{kind.__name__}` | `{code}` | {(inspect.getdoc(kind) or '').partition(chr(10))[0]} |"
        for code, kind in errors.ERRORS_BY_CODE.items()
    ]
    return "\n".join(lines) + "\n"


def tables() -> str:
    """Return the SQL that makes the tables."""
    return f"Version {migrations.VERSION}:\n\n```sql\n{migrations.script('')}```\n"


def compatibility() -> str:
    """Return the table of what was run, as `make compat` left it; nothing where it was not run."""
    found = Path(__file__).parents[1] / "reference" / "compatibility-runs.md"
    return found.read_text() if found.exists() else "\n"
