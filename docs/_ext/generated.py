"""The parts of the reference that are made from the code: settings, commands, errors, events, tables.

Each function returns Markdown. What it finds in the code and has no words for is an error, so that the build fails
where something new is not described.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

import click
from celery.utils.dispatch import Signal
from celery.worker.control import Panel

from celery_highlander import errors
from celery_highlander.beat import events as beat_events
from celery_highlander.cli import highlander as commands
from celery_highlander.cli.output import EX_CONFIG, EX_OK, EX_PROBLEM, EX_UNAVAILABLE
from celery_highlander.config import DURATIONS, PREFIX, Settings
from celery_highlander.election.lease import Timing
from celery_highlander.store import migrations
from celery_highlander.tasks import events as task_events
from celery_highlander.tasks.options import SingletonOptions
from celery_highlander.worker import control, monitoring, signals
from celery_highlander.worker.highlander import WORKER_OPTIONS
from celery_highlander.worker.metrics import METRICS, REASONS
from celery_highlander.worker.metrics import PREFIX as PREFIX_OF_METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sphinx.application import Sphinx

WIDTH = 80
"""Columns of a terminal, for the help texts."""


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def attributes(documented: type) -> dict[str, str]:
    """Return the descriptions in the section `Attributes` of a class, by name."""
    text = inspect.getdoc(documented) or ""
    section = text.partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    for names, words in re.findall(r"^    (\w[\w, ]*): ((?:.*\n?)(?:^      .*\n?)*)", section, re.MULTILINE):
        for name in names.split(", "):
            found[name] = " ".join(words.split())
    return found


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


# -- settings ----------------------------------------------------------------------------------------------------------

SETTINGS: dict[str, tuple[str, ...]] = {
    "Where the lock is": ("url", "engine", "namespace", "schema", "migrate"),
    "What is a singleton": ("queues", "queue_concurrency", "processes", "beat"),
    "Timings": (*DURATIONS, "on_stuck"),
    "Beat": ("beat_scheduler", "beat_missed", "beat_grace_time", "beat_once"),
    "By node": ("eligible", "priority", "http_address"),
}
"""The settings by the section of the page; those that are in none come last, so that none is left out."""

_OPTIONS = {option.name: option for option in WORKER_OPTIONS}


def settings() -> str:
    """Return a table of all settings for each section."""
    known = {spec.name: spec for spec in fields(Settings)}
    rest = tuple(name for name in known if not any(name in names for names in SETTINGS.values()))
    words = attributes(Settings)
    parts = []
    for title, names in (*SETTINGS.items(), *([("More", rest)] if rest else [])):
        rows = [
            (f"[]{{#{PREFIX}{name}}}`{PREFIX}{name}`", _default(known[name]), _sentence(words[name])) for name in names
        ]
        parts += [f"## {title}\n", table(("setting", "default", "what it is"), rows)]
    return "\n".join(parts)


def _default(spec: Any) -> str:
    value = spec.default if spec.default is not MISSING else spec.default_factory()
    if spec.name == "namespace":
        return "the app's name"
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, float):
        return f"{value:g} s"
    return "" if value == "" else f"`{value!r}`"


def timing() -> str:
    """Return the sum that has to fit into the lease, with the defaults."""
    default = Timing()
    return (
        f"`heartbeat_interval` {default.heartbeat_interval:g} + `heartbeat_timeout` {default.heartbeat_timeout:g} + "
        f"`drain_timeout` {default.drain_timeout:g} + `kill_margin` {default.kill_margin:g} = {default.needed:g} s, "
        f"within a lease of {default.lease:g} s.\n"
    )


def task_options() -> str:
    """Return a table of the options of a singleton task."""
    words = attributes(SingletonOptions)
    rows = [(f"`{spec.name}`", f"`{spec.default!r}`", _sentence(words[spec.name])) for spec in fields(SingletonOptions)]
    return table(("option", "default", "what it does"), rows)


# -- commands ----------------------------------------------------------------------------------------------------------


def cli() -> str:
    """Return the help texts of all commands."""
    parts = [_help(commands, "celery -A proj highlander", None)]
    for name in sorted(commands.commands):
        parts += [f"## {name}\n", _help(commands.commands[name], name, commands)]
    return "\n".join(parts)


def _help(command: click.Command, name: str, group: click.Group | None) -> str:
    parent = click.Context(group, info_name="celery -A proj highlander") if group is not None else None
    settings = dict(group.context_settings) if group is not None else {}
    settings.update(command.context_settings)
    context = click.Context(
        command, info_name=name, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH, **settings
    )
    return f"```text\n{command.get_help(context).rstrip()}\n```\n"


def remote() -> str:
    """Return a table of the remote-control commands."""
    rows = []
    for name, info in sorted(Panel.meta.items()):
        if Panel.data[name].__module__ != control.__name__:
            continue
        what = "inspect" if info.type == "inspect" else "control"
        argument = f" {info.signature}" if info.signature else ""
        rows.append((f"`celery -A proj {what} {name}{argument}`", info.help or ""))
    return table(("command", "what it does"), rows)


def worker_options() -> str:
    """Return a table of what the plugin adds to `celery worker`."""
    rows = [(f"`{' / '.join([*option.opts, *option.secondary_opts])}`", option.help or "") for option in WORKER_OPTIONS]
    return table(("option", "what it does"), rows)


def exit_codes() -> str:
    """Return a table of exit codes."""
    rows = (
        (EX_OK, "all is well, or done"),
        (EX_PROBLEM, "a singleton is led by nobody; a check found an error; not done in time, or it makes no sense"),
        (EX_UNAVAILABLE, "the database (for `free` and `sweep` the broker, for `health` the worker) cannot be reached"),
        (EX_CONFIG, "settings, rights or tables are not in order"),
    )
    return table(("code", "meaning"), ((str(code), meaning) for code, meaning in rows))


# -- errors ------------------------------------------------------------------------------------------------------------


def error_codes() -> str:
    """Return a table of all errors."""
    rows = []
    known: dict[str, type] = {errors.HighlanderError.code: errors.HighlanderError, **errors.ERRORS_BY_CODE}
    for code, error in known.items():
        base = error.__bases__[0].__name__
        words = (inspect.getdoc(error) or "").partition("\n\n")[0].replace("\n", " ")
        rows.append((f"`{code}`", f"`{error.__name__}`", f"`{base}`", words))
    return table(("code", "class", "is a", "what it says"), rows)


# -- events and signals ------------------------------------------------------------------------------------------------

_EVENTS = {
    monitoring.ELECTED: ("`singleton`, `token`", "this worker leads the singleton, and its work has begun"),
    monitoring.STEPPED_DOWN: ("`singleton`, `token`, `reason`", "it gave the singleton up, and its work is dead"),
    monitoring.LOST: ("`singleton`, `token`, `reason`", "it lost the lock session or the lease, and its work is dead"),
    monitoring.TAKEOVER_WAITING: ("`singleton`, `token`", "it has the lock, and waits for its predecessor's lease"),
    monitoring.SINGLETON_FAILED: (
        "`singleton`, `token`, `reason`",
        "the singleton process keeps ending here; another node gets its chance",
    ),
    task_events.SKIPPED_EVENT: ("`uuid`, `key`, `task`", "a run of a singleton task was skipped: its key is held"),
    beat_events.TICK_SKIPPED: ("`singleton`, `entry`, `count`", "the beat passed over ticks that it had missed"),
}


def events() -> str:
    """Return a table of the events."""
    sent = {
        value
        for module in (monitoring, task_events, beat_events)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str) and value.startswith("highlander-")
    }
    rows = [(f"`{name}`", *_EVENTS[name]) for name in [*_EVENTS, *sorted(sent - {*_EVENTS})]]
    return table(("event", "fields", "when it is sent"), rows)


_SIGNALS = {
    "leader_elected": ("the singleton's name", "`token`"),
    "leader_stepped_down": ("the singleton's name", "`token`, `reason`"),
    "leadership_lost": ("the singleton's name", "`token`, `reason`"),
    "run_skipped": ("the task", "`task_id`, `key`"),
}


def signal_table() -> str:
    """Return a table of the signals."""
    names = [name for name, value in vars(signals).items() if isinstance(value, Signal)]
    rows = [(f"`{name}`", *_SIGNALS[name]) for name in names]
    return table(("signal", "sender", "arguments"), rows)


# -- metrics -----------------------------------------------------------------------------------------------------------


def metrics() -> str:
    """Return a table of the metrics."""
    rows = [
        (f"`{PREFIX_OF_METRICS}{one.name}`", one.kind, ", ".join(f"`{label}`" for label in one.labels), one.text)
        for one in METRICS
    ]
    return table(("metric", "type", "labels", "what it says"), rows)


def reason_classes() -> str:
    """Return the classes of reasons."""
    names = sorted({name for _, name in REASONS} | {"database", "elected"})
    return ", ".join(f"`{name}`" for name in names) + ".\n"


# -- tables ------------------------------------------------------------------------------------------------------------

_TABLES = {
    "singleton": "The present term of each singleton, one row each. Never deleted: tokens and debts follow from it.",
    "term": "Every term, with its stopped mark; the newest 100 of each singleton stay.",
    "entry": "What the beat knows of each entry of its schedule.",
    "tick": "Every tick that the beat claimed; see [Beat](../explanation/beat.md).",
    "runner": "The lock sessions that runs of singleton tasks rely on.",
    "run": "The runs that hold a key, or held it when their session was lost. Unlogged.",
    "waiting": "The message that waits for a key, where only one may (`scope`).",
    "node": "Who takes part: names for the uuids that `pg_stat_activity` shows.",
    "order": "What operators ask for: pause, drain, prefer, step-down.",
    "migration": "Which migrations were applied.",
}


def _columns() -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for statement in migrations._statements("", 0):  # noqa: SLF001  # the list itself is what is documented
        match = re.match(
            r"create (?:unlogged )?table (?:if not exists )?highlander_(\w+) \((.*?)\)(?: with \(.*\))?$",
            statement,
            re.DOTALL,
        )
        if match is None:
            continue
        parts = re.split(r",\s*(?![^()]*\))", match[2].strip())
        found[match[1]] = [(part.split()[0], " ".join(part.split()[1:])) for part in parts]
    return found


def tables() -> str:
    """Return the columns of each table, and the rights that a role needs."""
    rights: dict[str, set[str]] = {}
    for needed in (migrations.ELECTION_RIGHTS, migrations.BEAT_RIGHTS, migrations.RUN_RIGHTS):
        for name, kinds in needed.items():
            rights.setdefault(name, set()).update(kinds)
    parts = []
    for name, columns in _columns().items():
        rows = [
            (f"`{column}`", f"`{kind}`") for column, kind in columns if column not in {"primary", "unique", "check"}
        ]
        limits = [f"`{column} {kind}`" for column, kind in columns if column in {"primary", "unique", "check"}]
        needs = ", ".join(kind for kind in ("select", "insert", "update", "delete") if kind in rights.get(name, ()))
        parts += [f"## highlander_{name}\n", _TABLES[name] + "\n", table(("column", "type"), rows)]
        parts += [f"{_sentence(', '.join(limits))}.\n"] if limits else []
        parts += [f"A worker's role needs: {needs}.\n"] if needs else []
    return "\n".join(parts)


def sql() -> str:
    """Return all statements, as `celery highlander migrate --sql` prints them for an empty database."""
    return f"```sql\n{migrations.script('').rstrip()}\n```\n"


def grants() -> str:
    """Return what lets a role take part that may not create tables."""
    statements = migrations.grants("", "app").replace("; ", ";\n")
    return f"```sql\n{statements}\n```\n"


def version() -> str:
    """Return the version of the tables."""
    return f"The tables of this release are of version {migrations.VERSION}.\n"


PARTS: dict[str, Callable[[], str]] = {
    "settings": settings,
    "timing": timing,
    "task-options": task_options,
    "cli": cli,
    "remote": remote,
    "worker-options": worker_options,
    "exit-codes": exit_codes,
    "errors": error_codes,
    "events": events,
    "signals": signal_table,
    "metrics": metrics,
    "reason-classes": reason_classes,
    "tables": tables,
    "tables-sql": sql,
    "tables-grants": grants,
    "tables-version": version,
}


_PLACE = re.compile(r"^```\{from-code\} ([\w-]+)\n```$", re.MULTILINE)


def fill_in(source: str) -> str:
    """Put the parts into a page where it has a block `{from-code} name`."""
    return _PLACE.sub(lambda match: PARTS[match[1]](), source)


def _fill_in(app: Sphinx, docname: str, content: list[str]) -> None:  # noqa: ARG001  # as Sphinx calls it
    content[0] = fill_in(content[0])


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", _fill_in)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
