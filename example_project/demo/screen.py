"""How the demonstration is shown: plain lines, or with rich a live table of the workers below them on a terminal."""

from __future__ import annotations

import importlib.util
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING, Any

from example_project.demo.watched import PROCESS, QUEUE

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from example_project.demo.play import Result
    from example_project.demo.stage import Stage

WIDTH = 110
_REFRESH = 0.25  # seconds


def milliseconds(duration: float | None) -> str:
    """Return a duration for a reader: milliseconds below a second, and seconds above."""
    if duration is None:
        return "never"
    return f"{duration * 1000:.0f} ms" if duration < 1 else f"{duration:.1f} s"


def wrapped(text: str, indent: str = "  ") -> str:
    """Return `text` in lines that fit."""
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent)


def summary(result: Result) -> str:
    """Return the one line about a scene."""
    lost = f"{result.lost} of {result.sent} payments lost"
    verdict = "; ".join(result.broken)
    return (
        f"=> next price after {milliseconds(result.takeover)}, next payment after {milliseconds(result.next_payment)}, "
        f"at most {result.at_once} at once, {lost}" + (f"   BROKEN: {verdict}" if verdict else "")
    )


def table(results: list[Result]) -> str:
    """Return the table at the end."""
    head = ("leader was …", "process back", "queue back", "promised", "at once", "sent", "lost")
    rows = [head]
    for result in results:
        durations = (milliseconds(result.takeover), milliseconds(result.next_payment), f"< {result.bound:.1f} s")
        rows.append((result.title, *durations, str(result.at_once), str(result.sent), str(result.lost)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  " + "   ".join(cells))
    lines.insert(1, "  " + "   ".join("-" * width for width in widths))
    return "\n".join(lines)


class PlainScreen:
    """One line after the other, each with the seconds since the start."""

    def __init__(self, write: Callable[[str], object] = print) -> None:
        self._write = write
        self._start = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Nothing to undo."""

    def follow(self, stage: Stage) -> None:
        """Nothing is shown between the lines."""

    def headline(self, text: str) -> None:
        """Begin a scene."""
        self._write(f"\n[{time.monotonic() - self._start:4.0f} s] {text}")

    def say(self, text: str) -> None:
        """Say one sentence."""
        self._write(wrapped(text, " " * 9))

    def result(self, result: Result) -> None:
        """Show what a scene came to."""
        self._write(" " * 9 + summary(result))

    def closing(self, text: str) -> None:
        """Write several lines as they are."""
        self._write(text)


class LiveScreen(PlainScreen):
    """The same lines, and below them the workers as they are."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415  # rich may be absent
        from rich.live import Live  # noqa: PLC0415

        console = Console(highlight=False)
        super().__init__(lambda text: console.print(text, markup=False, soft_wrap=True))
        self._live: Any = Live(console=console, auto_refresh=False, transient=True)
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join(5.0)
        self._live.stop()

    def follow(self, stage: Stage) -> None:
        """Show the workers of `stage` from now on."""
        self._thread = threading.Thread(target=self._refresh, args=(stage,), name="screen", daemon=True)
        self._thread.start()

    def _refresh(self, stage: Stage) -> None:
        while not self._done.wait(_REFRESH):
            self._live.update(_picture(stage), refresh=True)


def _picture(stage: Stage) -> Any:
    from rich.table import Table  # noqa: PLC0415  # rich may be absent

    acting = stage.cluster.acting()
    payments, prices = stage.tally.of(QUEUE), stage.tally.of(PROCESS)
    picture = Table(
        title=f"payments: {stage.sent} sent, {len(payments.ended)} entered   prices: {prices.lines} published",
        title_justify="left",
        min_width=78,
    )
    for column in ("worker", "pid", f"queue {QUEUE!r}", f"process {PROCESS!r}"):
        picture.add_column(column)
    for worker in stage.cluster.workers:
        if worker.is_running:
            leads = [acting.get(name, (0, 0))[0] == worker.pid for name in (QUEUE, PROCESS)]
            words = [f"[bold green]LEADER[/] (token {acting[name][1]})" if here else "standby"
                     for here, name in zip(leads, (QUEUE, PROCESS), strict=True)]  # fmt: skip
            picture.add_row(worker.name, str(worker.pid), *words)
        else:
            picture.add_row(f"[dim]{worker.name}[/]", f"[dim]{worker.pid}[/]", "[dim]dead[/]", "[dim]dead[/]")
    return picture


def screen_for(*, plain: bool) -> PlainScreen:
    """Return the screen for where standard output leads to."""
    if plain or not sys.stdout.isatty() or importlib.util.find_spec("rich") is None:
        return PlainScreen(lambda text: print(text, flush=True))
    return LiveScreen()
