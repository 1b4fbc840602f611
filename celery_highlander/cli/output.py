"""How the commands speak: tables with rich where it is installed, plain text where not, JSON where it is asked for."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

EX_OK = 0
EX_PROBLEM = 1
EX_UNAVAILABLE = 69  # sysexits.h: a service is unavailable
EX_CONFIG = 78  # sysexits.h: configuration error

COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}
_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table: its text, and `ok`, `warning`, `error` or nothing for its colour."""

    text: str
    tone: str = ""


def write_json(value: object) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def write_table(headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Print a table as wide as it needs to be; columns never lose text."""
    if not _write_rich_table(headings, rows):
        widths = [max(len(text) for text in column) for column in zip(headings, *_texts(rows), strict=True)]
        for line in (headings, *_texts(rows)):
            click.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def write_toned(tone: str, label: str, rest: str) -> None:
    """Print `label` in the colour of `tone`, then `rest`."""
    click.echo(f"{click.style(label, fg=COLOURS.get(tone), bold=True)}{rest}")


def complain(message: str, hint: str = "") -> None:
    """Print an error, and what to do about it, to standard error."""
    click.secho(f"error: {message}", fg="red", err=True)
    if hint:
        click.echo(hint, err=True)


def duration(seconds: float | None) -> str:
    """Return `seconds` as a person would say it; `-` for None."""
    if seconds is None:
        return "-"
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _texts(rows: Sequence[Sequence[Cell]]) -> list[list[str]]:
    return [[cell.text for cell in row] for row in rows]


def _write_rich_table(headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> bool:
    """Return whether it was printed: only for a person at a terminal, and with rich."""
    if not sys.stdout.isatty():
        return False
    try:
        from rich.console import Console  # noqa: PLC0415  # an extra, and slow to import
    except ImportError:
        return False
    Console().print(rich_table(headings, rows))
    return True


def rich_table(headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Any:
    """Return the table for rich; None where rich is not installed."""
    try:
        from rich.table import Table  # noqa: PLC0415  # an extra, and slow to import
        from rich.text import Text  # noqa: PLC0415
    except ImportError:
        return None
    table: Any = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")  # and not cut: names differ in their last letters
    for row in rows:
        table.add_row(*(Text(cell.text, style=COLOURS.get(cell.tone, "")) for cell in row))
    return table
