"""`status --watch`: the status again and again, in place at a terminal, and at each change in a pipe."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from celery_highlander.cli import output, status
from celery_highlander.errors import HighlanderError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from celery_highlander.store.status import SingletonStatus


def watch(namespace: str, read: Callable[[], Sequence[SingletonStatus]], interval: float, *, wide: bool) -> None:
    """Show what `read` returns every `interval` seconds, until Ctrl-C; an error is shown, and it is tried again."""
    with contextlib.suppress(KeyboardInterrupt):
        if sys.stdout.isatty():
            _watch_in_place(namespace, read, interval, wide=wide)
        else:
            _watch_changes(namespace, read, interval, wide=wide)


def _watch_in_place(
    namespace: str, read: Callable[[], Sequence[SingletonStatus]], interval: float, *, wide: bool
) -> None:
    if output.rich_table((), ()) is None:
        while True:
            click.clear()
            click.echo(_heading(namespace, interval))
            _write(namespace, read, wide=wide)
            time.sleep(interval)
    from rich.live import Live  # noqa: PLC0415  # an extra, and slow to import

    with Live(screen=True, auto_refresh=False) as live:
        while True:
            live.update(_screen(namespace, read, interval, wide=wide), refresh=True)
            time.sleep(interval)


def _screen(
    namespace: str, read: Callable[[], Sequence[SingletonStatus]], interval: float, *, wide: bool
) -> Any:  # what rich shows
    from rich.console import Group  # noqa: PLC0415  # as above
    from rich.text import Text  # noqa: PLC0415

    heading = Text(_heading(namespace, interval), style="dim")
    try:
        found = read()
    except HighlanderError as error:
        return Group(heading, Text(""), Text(f"error: {error.message}", style="red"), Text(error.hint))
    ends = sorted((entry.last_ended_at, entry) for entry in found if entry.last_ended_at is not None)
    lines = [Text(f"{status.last_end(entry)} ({entry.name})", style="dim") for _, entry in reversed(ends)]
    remarks = [Text(line, style="bold yellow") for line in status.remarks(namespace, found)]
    ended = [Text("\nLast terms that ended", style="bold"), *lines] if lines else []
    return Group(heading, Text(""), output.rich_table(*status.table(found, wide=wide)), *remarks, *ended)


def _watch_changes(
    namespace: str, read: Callable[[], Sequence[SingletonStatus]], interval: float, *, wide: bool
) -> None:
    shown: object = None
    while True:
        try:
            found = read()
            state: object = [(entry.name, entry.state, entry.token, entry.standbys, entry.paused) for entry in found]
        except HighlanderError as error:
            found, state = [], error.message
        if state != shown:
            shown = state
            click.echo(_heading(namespace, interval))
            if isinstance(state, str):
                output.complain(state)
            else:
                status.write(namespace, found, wide=wide)
            sys.stdout.flush()
        time.sleep(interval)


def _write(namespace: str, read: Callable[[], Sequence[SingletonStatus]], *, wide: bool) -> None:
    try:
        status.write(namespace, read(), wide=wide)
    except HighlanderError as error:
        output.complain(error.message, error.hint)


def _heading(namespace: str, interval: float) -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')}  namespace {namespace}, every {interval:g} s"
