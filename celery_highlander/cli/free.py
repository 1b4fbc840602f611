"""`free`: ends the run that holds a key, and waits until the key is free; it frees no key of a run that lives."""

from __future__ import annotations

import difflib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click
from sqlalchemy.exc import DBAPIError

from celery_highlander.cli import broker, output, tasks
from celery_highlander.clock import boot_time
from celery_highlander.election.lease import wait_for
from celery_highlander.store import connecting, run_status, waiting
from celery_highlander.store.migrations import RUN_RIGHTS, ensure_rights

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from sqlalchemy import Connection

    from celery_highlander.store.run_status import HeldKey, RunStatus
    from celery_highlander.worker.highlander import Highlander

KILL_TIMEOUT = 10.0
"""Seconds that a killed run may take to be gone, where nothing else is asked for."""

POLL_INTERVAL = 0.2
"""Seconds between two looks at the tables."""

_SPARE = 5.0  # seconds beyond the lease of a dead session, which is counted from when that is seen


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it.

    Attributes:
        found: what was of that key or task id; nothing else is touched.
        left: the runs that still hold their key.
        freed: the messages whose rows were freed.
        message: what to tell, where not everything is free.
    """

    found: RunStatus
    left: list[HeldKey] = field(default_factory=list)
    freed: list[str] = field(default_factory=list)
    message: str = ""

    @property
    def is_free(self) -> bool:
        """Whether there was something, and all of it is free."""
        return not self.message


class Freeing:
    """One call of the command.

    Args:
        highlander: the plugin of the app.
        timeout: seconds to wait for runs to be gone; None for as long as it should take.
        may_go_on: asked before anything is done, given what was found.
        say: gets a sentence about what happens.
    """

    def __init__(
        self,
        highlander: Highlander,
        timeout: float | None,
        may_go_on: Callable[[RunStatus], bool],
        say: Callable[[str], object],
    ) -> None:
        self._app = highlander.app
        self._settings = highlander.settings()
        self._target = highlander.target(self._settings)
        self._timeout = timeout
        self._may_go_on = may_go_on
        self._say = say

    def run(self, word: str) -> Outcome:
        """Free the key `word`, or that of the task id `word`.

        Raises:
            HighlanderError: database or broker cannot be asked, or the role may not write.
        """
        connection = connecting.open_connection(self._target, f"highlander-free {self._settings.namespace}")
        try:
            return self._run(connection, word)
        except DBAPIError as error:
            raise connecting.unanswered(error, self._target) from None
        finally:
            connection.close()

    def _run(self, connection: Connection, word: str) -> Outcome:
        everything = self._read(connection)
        found = everything.matching(word)
        if not found.runs and not found.waiting:
            return Outcome(found, message=_not_found(word, everything))
        with connecting.patience(connection):
            ensure_rights(connection, self._settings.schema, RUN_RIGHTS)
        if not self._may_go_on(found):
            return Outcome(found, left=found.runs, message="Nothing was done.")
        left = self._end(connection, found.runs)
        ended = {run.task_id for run in found.runs} - {run.task_id for run in left}
        task_ids = ended if found.runs else {message.task_id for message in found.waiting}
        with connecting.patience(connection):
            waiting.forget(connection, self._settings.schema, task_ids)
        freed = sorted(message.task_id for message in everything.waiting if message.task_id in task_ids)
        return Outcome(found, left, freed, " ".join(_still_held(run) for run in left))

    def _read(self, connection: Connection) -> RunStatus:
        with connecting.patience(connection):
            return run_status.read_with(connection, self._settings.namespace, self._settings.schema)

    def _end(self, connection: Connection, runs: list[HeldKey]) -> list[HeldKey]:
        """Kill the runs that live, wait until all are gone; return those that are not."""
        wanted = {_identity(run) for run in runs}
        seen_at: dict[tuple[int, str, datetime], float] = {}  # when the sessions of dead ones were seen to be dead
        deadline = boot_time() + (KILL_TIMEOUT if self._timeout is None else self._timeout)
        killed = False
        while True:
            left = [run for run in self._read(connection).runs if _identity(run) in wanted]
            now = boot_time()
            for run in [run for run in left if run.state == "owed"]:
                if _identity(run) not in seen_at:
                    seen_at[_identity(run)] = now
                    self._say(
                        f"The lock session of {run.task_id} is dead: the key is free in {wait_for(run.lease):.1f} s at "
                        "most, when its lease is over."
                    )
                    if self._timeout is None:
                        deadline = max(deadline, now + wait_for(run.lease) + _SPARE)
                if now >= seen_at[_identity(run)] + wait_for(run.lease):
                    with connecting.patience(connection):
                        run_status.pay(connection, self._settings.schema, run)
            if not left or now >= deadline:
                return left
            if not killed:
                killed = True
                self._kill([run.task_id for run in left if run.state == "held"])
            time.sleep(POLL_INTERVAL)

    def _kill(self, task_ids: list[str]) -> None:
        if not task_ids:
            return
        with broker.connected(self._app) as connection:
            self._app.control.revoke(task_ids, connection=connection, terminate=True, signal="SIGKILL")
        self._say(f"The workers are told to kill {', '.join(task_ids)}.")


def _identity(run: HeldKey) -> tuple[int, str, datetime]:
    return run.key, run.holder, run.since


def _not_found(word: str, everything: RunStatus) -> str:
    names = [(run.name, run.task_id) for run in everything.runs]
    names += [(message.name, message.task_id) for message in everything.waiting]
    known = {name for both in names for name in both}
    close = difflib.get_close_matches(word, known, n=1)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    return (
        f"No run holds {word!r}, and no message waits for it, neither as a key nor as a task id.{guess} "
        "`celery -A proj highlander status --tasks` lists all of them."
    )


def _still_held(run: HeldKey) -> str:
    if run.state == "owed":
        return (
            f"{run.name} is still held by {run.task_id}, whose lock session is dead: wait until its lease of "
            f"{run.lease:g} s is over (a longer --timeout)."
        )
    where = f"{run.worker} (pid {run.pid})" if run.worker else "its worker"
    return (
        f"{run.name} is still held by {run.task_id}, which runs on {where}. Either that process does not hear, or its "
        f"pool cannot kill a single task (only prefork can): restart {where}."
    )


def ask(found: RunStatus) -> bool:
    """Show a person at the terminal what is to be freed, and ask."""
    tasks.write(found, err=True)
    if found.runs:
        question = "\nKill what runs (its workers refuse that task id from now on), and free the key?"
    else:
        question = "\nFree the key? A message that is in its queue after all is run as well."
    return click.confirm(question, err=True)


def exit_code(outcome: Outcome) -> int:
    """Return 0 if it is free, 1 otherwise."""
    return output.EX_OK if outcome.is_free else output.EX_PROBLEM


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Return the outcome as plain values."""
    left = {_identity(run) for run in outcome.left}
    return {
        "freed": outcome.is_free,
        "runs": [{**tasks.plain_run(run), "gone": _identity(run) not in left} for run in outcome.found.runs],
        "waiting": outcome.freed,
        "message": outcome.message,
    }


def write(outcome: Outcome) -> None:
    """Print what came of it."""
    left = {_identity(run) for run in outcome.left}
    for run in outcome.found.runs:
        if _identity(run) not in left:
            click.echo(f"Freed {run.name}: the run of {run.task_id} is gone.")
    for task_id in outcome.freed:
        click.echo(f"Freed the place of the message {task_id}: another one may be sent.")
    if outcome.message:
        output.complain(outcome.message)
