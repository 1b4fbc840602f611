"""`status`: who leads what; turns what the database says into rows, JSON and an exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from celery_highlander.cli import output
from celery_highlander.cli.output import Cell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery_highlander.store.nodes import NodeStatus
    from celery_highlander.store.status import SingletonStatus

_TONES = {"leading": "ok", "waiting": "warning", "silent": "error", "free": "error", "paused": "warning"}
_HEADINGS = ("SINGLETON", "STATE", "LEADER", "SINCE", "STANDBYS", "LEASE LEFT")
_WIDE_HEADINGS = (*_HEADINGS, "PID", "TOKEN", "LAST TERM ENDED")
_NODE_HEADINGS = ("NODE", "PID", "MAY LEAD", "LEADS", "CONNECTED", "ID")


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
        "paused": entry.paused,
    }


def write(namespace: str, found: Sequence[SingletonStatus], *, wide: bool = False) -> None:
    """Print the status as a table."""
    if not found:
        click.echo("There are no singletons: declare some with highlander_queues, highlander_processes or in the code.")
        return
    output.write_table(*table(found, wide=wide))
    for line in remarks(namespace, found):
        click.echo(line, err=True)


def table(found: Sequence[SingletonStatus], *, wide: bool = False) -> tuple[Sequence[str], list[list[Cell]]]:
    """Return headings and rows."""
    return _WIDE_HEADINGS if wide else _HEADINGS, [_row(entry, wide=wide) for entry in found]


def remarks(namespace: str, found: Sequence[SingletonStatus]) -> list[str]:
    """Return what a person has to notice."""
    unled = [entry.name for entry in found if entry.state not in ("leading", "paused")]
    lines = [f"\nLed by nobody in the namespace {namespace!r}: {', '.join(unled)}."] if unled else []
    for told, names in _pauses(found).items():
        lines.append(f"\nPAUSED {told}: {', '.join(names)}. `celery -A proj highlander resume` ends that.")
    return lines


def _pauses(found: Sequence[SingletonStatus]) -> dict[str, list[str]]:
    pauses: dict[str, list[str]] = {}
    for entry in found:
        if entry.paused is not None:
            pauses.setdefault(entry.paused, []).append(entry.name)
    return pauses


def _row(entry: SingletonStatus, *, wide: bool) -> list[Cell]:
    lease_left = f"{entry.lease_left:.1f} s" if entry.lease_left is not None else "-"
    return [
        Cell(entry.name),
        Cell(entry.state, _TONES.get(entry.state, "")),
        Cell(entry.worker or "-"),
        Cell(output.duration(entry.age)),
        Cell(str(entry.standbys)),
        Cell(lease_left, "error" if entry.state == "silent" else ""),
        *([Cell(str(entry.pid or "-")), Cell(str(entry.token or "-")), Cell(last_end(entry))] if wide else []),
    ]


def nodes_as_json(namespace: str, nodes: Sequence[NodeStatus], found: Sequence[SingletonStatus]) -> dict[str, Any]:
    """Return the nodes as plain values."""
    return {
        "namespace": namespace,
        "nodes": [
            {
                "worker": node.worker,
                "pid": node.pid,
                "node": node.node,
                "priority": node.priority,
                "eligible": node.eligible,
                "drained": node.drained,
                "alone": node.alone,
                "release": node.release,
                "since": node.since.isoformat() if node.since else None,
                "leads": _led_by(node, found),
            }
            for node in nodes
        ],
    }


def write_nodes(nodes: Sequence[NodeStatus], found: Sequence[SingletonStatus]) -> None:
    """Print the nodes as a table."""
    if not nodes:
        click.echo("No node is connected.")
        return
    rows = [
        [
            Cell(node.worker or "-"),
            Cell(str(node.pid or "-")),
            Cell(*_may_lead(node)),
            Cell(", ".join(_led_by(node, found)) or "-"),
            Cell(output.duration(node.age)),
            Cell(node.node),
        ]
        for node in nodes
    ]
    output.write_table(_NODE_HEADINGS, rows)


def _may_lead(node: NodeStatus) -> tuple[str, str]:
    if node.drained:
        return "drained", "warning"
    if not node.eligible:
        return "no", "warning"
    what = "beat" if node.alone else "yes"
    return f"{what}, priority {node.priority}" if node.priority else what, "ok"


def _led_by(node: NodeStatus, found: Sequence[SingletonStatus]) -> list[str]:
    return [entry.name for entry in found if entry.node == node.node and entry.state != "waiting"]


def last_end(entry: SingletonStatus) -> str:
    """Return when the last term that is over ended, and why."""
    if entry.last_ended_at is None:
        return "-"
    when = entry.last_ended_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return f"{when}: {entry.last_reason}" if entry.last_reason else when
