"""`history`: the terms on record as tables, JSON, or a time line in the terminal or a file."""

from __future__ import annotations

import shutil
from datetime import datetime, timezone
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from celery_highlander.cli import output
from celery_highlander.cli.output import Cell
from celery_highlander.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from celery_highlander.store.history import PastTerm

_HEADINGS = ("SINCE", "LED FOR", "GAP", "NODE", "ENDED BECAUSE")
_FULL, _NOBODY = "█", "·"
_PLOT_ENDINGS = (".svg", ".png", ".pdf")
_MAX_ROW = 0.5  # inches of the plot for each singleton


def as_json(namespace: str, terms: Sequence[PastTerm]) -> dict[str, Any]:
    """Return the history as plain values; durations are seconds, instants ISO 8601."""
    return {"namespace": namespace, "terms": [_plain(term) for term in terms]}


def _plain(term: PastTerm) -> dict[str, Any]:
    return {
        "name": term.name,
        "token": term.token,
        "worker": term.worker,
        "pid": term.pid,
        "node": term.node,
        "began_at": term.began_at.isoformat(),
        "elected_at": term.elected_at.isoformat() if term.elected_at else None,
        "ended_at": term.ended_at.isoformat() if term.ended_at else None,
        "lasts": term.lasts,
        "seconds_led": term.seconds_led,
        "gap": term.gap,
        "reason": term.reason,
    }


def write(terms: Sequence[PastTerm]) -> None:
    """Print a table for each singleton."""
    if not terms:
        click.echo("Nothing has been led yet.")
    for number, (name, own) in enumerate(_by_name(terms)):
        if number:
            click.echo()
        click.echo(click.style(name, bold=True))
        output.write_table(_HEADINGS, [_row(term) for term in own])


def _by_name(terms: Sequence[PastTerm]) -> list[tuple[str, list[PastTerm]]]:
    ordered = sorted(terms, key=lambda term: term.name)  # stable: the oldest first within each
    return [(name, list(own)) for name, own in groupby(ordered, key=lambda term: term.name)]


def _row(term: PastTerm) -> list[Cell]:
    led = output.duration(_led_until_now(term))
    how = ("still leads", "ok") if term.lasts and term.elected_at else _ending(term)
    return [
        Cell(term.began_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")),
        Cell(led if term.elected_at else "never"),
        Cell(_gap(term.gap)),
        Cell(term.worker),
        Cell(*how),
    ]


def _ending(term: PastTerm) -> tuple[str, str]:
    if term.ended_at is None:
        return ("waits for its predecessor", "warning") if term.lasts else ("not recorded: cut off for good", "error")
    return term.reason or "", ""


def _gap(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if abs(seconds) < 1 else output.duration(seconds)


def _led_until_now(term: PastTerm) -> float | None:
    if term.lasts and term.elected_at is not None:
        return max(0.0, (datetime.now(timezone.utc) - term.elected_at).total_seconds())
    return term.seconds_led


# -- time lines --------------------------------------------------------------------------------------------------------


def _spans(terms: Iterable[PastTerm], now: datetime) -> list[tuple[PastTerm, datetime, datetime]]:
    """When each term acted; one whose end is not known counts until its successor began, or until now."""
    acting = [term for term in terms if term.elected_at is not None]
    spans = []
    for term, successor in zip(acting, [*acting[1:], None], strict=True):
        end = term.ended_at or (now if successor is None else successor.began_at)
        spans.append((term, term.elected_at or term.began_at, end))
    return spans


def draw(terms: Sequence[PastTerm]) -> None:
    """Print a time line as wide as the terminal: a row for each node of each singleton."""
    now = datetime.now(timezone.utc)
    begun = [term.elected_at for term in terms if term.elected_at]
    if not begun:
        click.echo("Nothing has been led yet.")
        return
    first, last = min(begun), now
    workers = {term.worker for term in terms}
    label = min(max(map(len, workers)), 30)
    width = max(20, shutil.get_terminal_size().columns - label - 4)
    for name, own in _by_name(terms):
        click.echo(click.style(name, bold=True))
        spans = _spans(own, now)
        for worker in sorted({term.worker for term, _, _ in spans}):
            its = [(begin, end) for term, begin, end in spans if term.worker == worker]
            click.echo(f"  {worker[-label:]:<{label}} {_bar(its, first, last, width)}")
    begin, end = (at.astimezone().strftime("%m-%d %H:%M:%S") for at in (first, last))
    click.echo(f"  {'':<{label}} {begin}{end:>{max(1, width - len(begin))}}")


def _bar(spans: list[tuple[datetime, datetime]], first: datetime, last: datetime, width: int) -> str:
    scale = width / max(1e-6, (last - first).total_seconds())
    line = [_NOBODY] * width
    for begin, end in spans:
        start = int((begin - first).total_seconds() * scale)
        stop = int((end - first).total_seconds() * scale)
        for column in range(min(start, width - 1), min(max(stop, start + 1), width)):
            line[column] = _FULL
    return "".join(line)


def plot(terms: Sequence[PastTerm], path: str) -> None:
    """Draw the time line into the file `path`, whose ending says in which format.

    Raises:
        RefusedError: matplotlib is not installed, the ending says nothing, there is nothing to draw, or the file cannot
            be written.
    """
    if Path(path).suffix.lower() not in _PLOT_ENDINGS:
        raise RefusedError(f"{path!r} does not end in {', '.join(_PLOT_ENDINGS)}.", "Or say `--plot -`.")
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  # an extra, and slow to import
    except ImportError:
        raise RefusedError(
            "matplotlib is not installed.", "pip install 'celery-highlander[plot]', or say `--plot -`."
        ) from None
    import matplotlib.dates  # noqa: PLC0415  # as above
    from matplotlib import colormaps  # noqa: PLC0415
    from matplotlib.patches import Patch  # noqa: PLC0415

    dates: Any = matplotlib.dates  # it has no types
    now = datetime.now(timezone.utc)
    rows = [(name, spans) for name, own in _by_name(terms) if (spans := _spans(own, now))]
    if not rows:
        raise RefusedError("nothing has been led yet.", "There is nothing to draw.")
    workers = sorted({term.worker for _, spans in rows for term, _, _ in spans})
    palette = colormaps["tab10" if len(workers) <= 10 else "tab20"]  # noqa: PLR2004  # as many colours as it has
    colours = {worker: palette(number % palette.N) for number, worker in enumerate(workers)}
    figure = Figure(figsize=(10, 1.6 + _MAX_ROW * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for row, (_, spans) in enumerate(rows):
        for term, begin, end in spans:
            start, stop = dates.date2num(begin), dates.date2num(end)
            axes.broken_barh([(start, stop - start)], (row - 0.35, 0.7), facecolors=colours[term.worker])
        for (_, _, end), (_, begin, _) in pairwise(spans):
            start, stop = dates.date2num(end), dates.date2num(begin)
            axes.broken_barh([(start, max(0.0, stop - start))], (row - 0.04, 0.08), facecolors="crimson")
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.xaxis_date(tz=datetime.now().astimezone().tzinfo)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(axes.xaxis.get_major_locator()))
    axes.grid(axis="x", alpha=0.3)
    axes.set_title("Who led what (red: nobody)")
    legend = [Patch(color=colours[worker], label=worker) for worker in workers]
    figure.legend(handles=legend, loc="outside lower center", ncols=min(4, len(workers)), frameon=False)
    try:
        figure.savefig(path)
    except OSError as error:
        raise RefusedError(f"{path!r} cannot be written: {error.strerror}.", "") from None
    click.echo(f"Drawn: {path}")
