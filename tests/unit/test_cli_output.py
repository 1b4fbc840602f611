"""How the commands print: durations, tables with and without rich."""

from __future__ import annotations

import sys

import click
import pytest

from celery_highlander.cli.output import Cell, duration, write_table

ROWS = [[Cell("ledger"), Cell("leading", "ok")], [Cell("a-long-name"), Cell("free", "error")]]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "-"), (0.0, "0.0 s"), (59.94, "59.9 s"), (60, "1.0 min"), (5400, "1.5 h"), (172800, "2.0 d")],
)
def test_a_duration_is_said_as_a_person_would(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


def test_a_table_into_a_pipe_is_plain_text_in_columns(capsys: pytest.CaptureFixture[str]) -> None:
    write_table(("NAME", "STATE"), ROWS)
    assert capsys.readouterr().out.splitlines() == [
        "NAME         STATE",
        "ledger       leading",
        "a-long-name  free",
    ]


def test_a_table_on_a_terminal_uses_rich(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    write_table(("NAME", "STATE"), ROWS)
    told = capsys.readouterr().out
    assert "a-long-name" in told
    assert "leading" in told


def test_no_name_is_cut_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    nodes = ["celery@shop-worker-7c9f8-abcde", "celery@shop-worker-7c9f8-fghij"]
    write_table(("NODE", "REASON"), [[Cell(node), Cell("worker shutting down")] for node in nodes])
    _, *lines = click.unstyle(capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 40
    assert "".join(line.split()[0] for line in lines if not line.startswith(" ")) == "".join(nodes)


def test_a_terminal_without_rich_gets_plain_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for module in ("rich.console", "rich.table"):
        monkeypatch.setitem(sys.modules, module, None)
    write_table(("NAME", "STATE"), ROWS)
    assert "ledger       leading" in capsys.readouterr().out
