"""`status`: who leads what; turns what the database says into rows, JSON and an exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from celery_highlander.cli import output
from celery_highlander.cli.output import Cell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery_highlander.store.status import SingletonStatus

_TONES = {"leading": "ok", "waiting": "warning", "silent": "error", "free": "error"}
_HEADINGS = ("SINGLETON", "STATE", "LEADER", "PID", "SINCE", "TOKEN", "STANDBYS", "LEASE LEFT", "LAST TERM ENDED")


def exit_code(found: Sequence[SingletonStatus]) -> int:
    """Return 0 if every singleton is led, 1 otherwise."""
    return output.EX_OK if all(entry.state == "leading" for entry in found) else output.EX_PROBLEM


def as_json(namespace: str, found: Sequence[SingletonStatus]) -> dict[str, Any]:
    """Return the status as plain values; durations are seconds, instants ISO 8601."""
    return {"namespace": namespace, "singletons": [_plain(entry) for entry in found]}


def _plain(entry: SingletonStatus) -> dict[str, Any]:
    return {
        "name": entry.name,
        "state": entry.state,
        "leader": entry.worker,
        "pid": entry.pid,
        "node": entry.node,
        "token": entry.token,
        "since": entry.since.isoformat() if entry.since else None,
        "age": entry.age,
        "standbys": entry.standbys,
        "lease": entry.lease,
        "lease_left": entry.lease_left,
        "last_ended_at": entry.last_ended_at.isoformat() if entry.last_ended_at else None,
        "last_reason": entry.last_reason,
    }


def write(namespace: str, found: Sequence[SingletonStatus]) -> None:
    """Print the status as a table."""
    if not found:
        click.echo("There are no singletons: declare some with highlander_queues, highlander_processes or in the code.")
        return
    output.write_table(_HEADINGS, [_row(entry) for entry in found])
    unled = [entry.name for entry in found if entry.state != "leading"]
    if unled:
        click.echo(f"\nLed by nobody in the namespace {namespace!r}: {', '.join(unled)}.", err=True)


def _row(entry: SingletonStatus) -> list[Cell]:
    lease_left = f"{entry.lease_left:.1f} s" if entry.lease_left is not None else "-"
    return [
        Cell(entry.name),
        Cell(entry.state, _TONES.get(entry.state, "")),
        Cell(entry.worker or "-"),
        Cell(str(entry.pid or "-")),
        Cell(output.duration(entry.age)),
        Cell(str(entry.token or "-")),
        Cell(str(entry.standbys)),
        Cell(lease_left, "error" if entry.state == "silent" else ""),
        Cell(_last_end(entry)),
    ]


def _last_end(entry: SingletonStatus) -> str:
    if entry.last_ended_at is None:
        return "-"
    when = entry.last_ended_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return f"{when}: {entry.last_reason}" if entry.last_reason else when
