"""`status --tasks`: which runs of singleton tasks hold a key, and which messages wait for one."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

from celery_highlander.cli import output

if TYPE_CHECKING:
    from celery_highlander.store.run_status import HeldKey, RunStatus, WaitingMessage

_TONES = {"held": "ok", "owed": "warning", "waits": ""}
_INDENT = 18


def as_json(namespace: str, found: RunStatus) -> dict[str, Any]:
    """Return the status as plain values; durations are seconds, instants ISO 8601."""
    return {
        "namespace": namespace,
        "runs": [plain_run(run) for run in found.runs],
        "waiting": [plain_message(message) for message in found.waiting],
    }


def plain_run(run: HeldKey) -> dict[str, Any]:
    """Return a run as plain values."""
    return {
        "key": run.name,
        "task": run.task,
        "task_id": run.task_id,
        "state": run.state,
        "worker": run.worker,
        "pid": run.pid,
        "since": run.since.isoformat(),
        "age": run.age,
        "lease": run.lease,
    }


def plain_message(message: WaitingMessage) -> dict[str, Any]:
    """Return a message as plain values."""
    return {
        "key": message.name,
        "task": message.task,
        "task_id": message.task_id,
        "queue": message.queue,
        "sent_at": message.sent_at.isoformat(),
        "age": message.age,
        "expires_in": message.expires_in,
        "missed": message.missed,
    }


def write(found: RunStatus, *, err: bool = False) -> None:
    """Print the status, with two lines for each run and for each message; to standard error if `err`."""
    if found.runs:
        click.echo(f"Runs that hold a key ({len(found.runs)}):", err=err)
    else:
        click.echo("No run holds a key.", err=err)
    for run in found.runs:
        _write_entry(run.state, run.age, run.name, _of_run(run), err=err)
    if found.waiting:
        click.echo(f"Messages that wait for a key ({len(found.waiting)}):", err=err)
    else:
        click.echo("No message waits for a key.", err=err)
    for message in found.waiting:
        _write_entry("waits", message.age, message.name, _of_message(message), err=err)
    owed = [run.lease for run in found.runs if run.state == "owed"]
    if owed:
        click.echo(
            "\nowed: the lock session of that run is dead, and the run itself may go on until its\n"
            f"lease is over. Others wait for that: {max(owed):g} s at most.",
            err=True,
        )


def _of_run(run: HeldKey) -> str:
    return f"{run.task_id} on {run.worker or 'a worker that is forgotten'}{_of_task(run.task, run.name)}"


def _of_message(message: WaitingMessage) -> str:
    expires = "" if message.expires_in is None else f", expires in {output.duration(message.expires_in)}"
    missed = f", missed {message.missed} times" if message.missed else ""
    return f"{message.task_id} in {message.queue}{expires}{missed}{_of_task(message.task, message.name)}"


def _of_task(task: str, key: str) -> str:
    return "" if key == task or key.startswith(f"{task}(") else f", {task}"  # most keys begin with it


def _write_entry(state: str, age: float, key: str, more: str, *, err: bool) -> None:
    label = click.style(f"{state:<5}", fg=output.COLOURS.get(_TONES[state]), bold=True)
    click.echo(f"  {label}{cut(f'{output.duration(age):>9}  {key}', 7, err=err)}", err=err)
    click.echo(f"{'':{_INDENT}}{cut(more, _INDENT, err=err)}", err=err)


def cut(text: str, taken: int, *, err: bool = False) -> str:
    """Return `text`, as far as it fits a line of the terminal that has `taken` columns already; whole in a pipe."""
    left = shutil.get_terminal_size().columns - taken
    is_terminal = (sys.stderr if err else sys.stdout).isatty()
    return f"{text[: left - 1]}…" if is_terminal and len(text) > left else text
