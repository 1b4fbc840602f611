"""`doctor`: judges whether the plugin can work with this database and these settings; every finding has its cure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from celery_highlander.cli import advice, output
from celery_highlander.cli.advice import Finding
from celery_highlander.config import BEAT
from celery_highlander.errors import ConfigurationError, HighlanderError, LockSessionError, SchemaError
from celery_highlander.store import inspection, migrations
from celery_highlander.tasks.singleton import singleton_tasks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from celery_highlander.config import Settings
    from celery_highlander.store.inspection import Inspection
    from celery_highlander.worker.highlander import Highlander

_FEW_CONNECTIONS = 5
_SLOW = 0.25  # of the heartbeat's time-out, for one round trip
_CLOCK_TOLERANCE = 5.0


@dataclass(frozen=True, slots=True)
class Parts:
    """Which parts of the plugin are in use, besides elections."""

    beat: bool
    runs: bool


def examine(highlander: Highlander) -> list[Finding]:
    """Return all findings, from the settings to the database; the first error of a kind ends what builds on it."""
    findings: list[Finding] = []
    try:
        settings = highlander.settings()
        target = highlander.target(settings)
        keys = highlander.keys(settings)
    except ConfigurationError as error:
        return [Finding("settings", "error", error.message, error.hint or "Correct them in the app's configuration.")]
    findings.append(_on_singletons(settings, len(keys)))
    findings += advice.on_celery(highlander.app, highlander.queues(settings))
    try:
        found = inspection.inspect(target, settings.schema, settings.timing, settings.namespace, keys)
    except HighlanderError as error:
        return [*findings, Finding(_CHECK_OF_ERROR.get(error.code, "connection"), "error", error.message, error.hint)]
    parts = Parts(
        beat=not settings.beat_scheduler  # which keeps its own books
        and (BEAT in highlander.processes(settings) or "highlander" in str(highlander.app.conf.beat_scheduler)),
        runs=bool(singleton_tasks(highlander.app)),
    )
    return [*findings, *_on_database(found, settings, parts)]


_CHECK_OF_ERROR = {"pooler": "pooler", "standby_server": "standby", "server_version": "server version"}


def _on_singletons(settings: Settings, count: int) -> Finding:
    fits = f"lease {settings.lease_duration:g} s, of which {settings.timing.needed:g} s are needed"
    if not count:
        return Finding(
            "settings",
            "warning",
            "no singleton is declared: there is nothing to lead.",
            "Declare some with highlander_queues, highlander_processes, or highlander.queue(…) in the code.",
        )
    return Finding("settings", "ok", f"singletons: {count}, in the namespace {settings.namespace!r}; {fits}")


def _on_database(found: Inspection, settings: Settings, parts: Parts) -> Iterator[Finding]:
    yield Finding("connection", "ok", f"{found.database!r} as {found.role!r}, {found.round_trip * 1000:.1f} ms away")
    server = found.server
    if isinstance(server, LockSessionError):
        yield Finding(_CHECK_OF_ERROR.get(server.code, "connection"), "error", server.message, server.hint)
    else:
        yield Finding("server version", "ok", found.version)
        yield Finding("pooler", "ok", "none: the connection is direct")
        yield Finding("standby", "ok", f"no: the server is a primary, on timeline {server.timeline}")
    yield from _on_tables(found, settings, parts)
    if found.session is not None:
        yield Finding(
            "session settings",
            "error",
            f"the role may not make the settings of a lock session: {found.session}",
            "Without idle_session_timeout the server keeps the lock of a node that is cut off.",
        )
    elif not isinstance(server, LockSessionError):
        yield Finding("session settings", "ok", f"the server drops a silent holder after {settings.lease_duration:g} s")
    yield from _on_keys(found)
    yield from _on_answer(found, settings)
    yield _on_connections(found)


def _on_tables(found: Inspection, settings: Settings, parts: Parts) -> Iterator[Finding]:
    names = f"{migrations.prefix(settings.schema)}*"
    run = "Run `celery -A proj highlander migrate` with a role that may create tables (`--sql` prints the statements)"
    if isinstance(found.tables, SchemaError):
        yield Finding("tables", "error", found.tables.message, found.tables.hint)
        return
    if found.tables < migrations.VERSION:
        state = f"of version {found.tables}, and {migrations.VERSION} is needed" if found.tables else "missing"
        if found.may_create and settings.migrate:
            yield Finding("tables", "ok", f"{names} are {state}: the first worker that starts creates them")
        else:
            why = "highlander_migrate is False" if found.may_create else f"the role {found.role!r} may not create them"
            yield Finding("tables", "error", f"{names} are {state}, and {why}.", f"{run}.")
        return
    newer = f", newer than this release's {migrations.VERSION}" if found.tables > migrations.VERSION else ""
    yield Finding("tables", "ok", f"{names} are of version {found.tables}{newer}")
    yield from _on_rights(found, settings, parts)


def _on_rights(found: Inspection, settings: Settings, parts: Parts) -> Iterator[Finding]:
    cure = migrations.grants(settings.schema, found.role)
    if found.missing_rights:
        yield Finding(
            "rights",
            "error",
            f"the role {found.role!r} lacks {', '.join(found.missing_rights)}: it can read the status at best.",
            cure,
        )
    else:
        yield Finding("rights", "ok", f"{found.role!r} may read and write the tables")
    for check, missing, in_use, without in (
        ("rights of the beat", found.missing_rights_of_beat, parts.beat, "the beat cannot run"),
        ("rights of singleton tasks", found.missing_rights_of_runs, parts.runs, "no singleton task can run"),
    ):
        if missing:
            use = "" if in_use else " (this app has none)"
            yield Finding(
                check,
                "error" if in_use else "warning",
                f"the role {found.role!r} lacks {', '.join(missing)}: {without}{use}.",
                cure,
            )
        elif missing is not None and in_use:
            yield Finding(check, "ok", f"{found.role!r} may read and write their tables")


def _on_keys(found: Inspection) -> Iterator[Finding]:
    for name, namespace, other in found.collisions:
        yield Finding(
            "lock keys",
            "error",
            f"{name!r} has the lock key of {other!r} in the namespace {namespace!r}: no worker starts.",
            "Rename one of them.",
        )
    for name, application, pid in found.strangers:
        yield Finding(
            "lock keys",
            "error",
            f"the lock of {name!r} is held by another program, {application!r}, backend {pid}: nobody can be elected.",
            "End that session, and have the program take other keys; or rename the singleton.",
        )
    if not found.collisions and not found.strangers:
        yield Finding("lock keys", "ok", "no key of a singleton is another one's, or held by another program")


def _on_answer(found: Inspection, settings: Settings) -> Iterator[Finding]:
    if found.round_trip > settings.heartbeat_timeout * _SLOW:
        yield Finding(
            "round trip",
            "warning",
            f"the server answered after {found.round_trip:.2f} s; a heartbeat has {settings.heartbeat_timeout:g} s.",
            "Lengthen highlander_heartbeat_timeout and highlander_lease_duration, or move closer to the server.",
        )
    ahead = f"{abs(found.clock_ahead):.3f} s {'ahead of' if found.clock_ahead > 0 else 'behind'} this machine's"
    remark = "" if abs(found.clock_ahead) < _CLOCK_TOLERANCE else "; times of day in logs and status will not agree"
    yield Finding("clock", "ok", f"the server's is {ahead}{remark} (for information: no two clocks are ever compared)")


def _on_connections(found: Inspection) -> Finding:
    free = found.max_connections - found.connections
    message = f"{found.connections} of {found.max_connections} in use, {free} free; each node takes one"
    if free < _FEW_CONNECTIONS:
        return Finding("connections", "warning", f"{message}.", "Raise max_connections, or close what nobody uses.")
    return Finding("connections", "ok", message)


def exit_code(findings: Sequence[Finding]) -> int:
    """Return 1 if there is an error, 0 otherwise."""
    return output.EX_PROBLEM if any(finding.level == "error" for finding in findings) else output.EX_OK


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the findings as plain values."""
    return {"ok": exit_code(findings) == output.EX_OK, "checks": [asdict(finding) for finding in findings]}


def write(findings: Sequence[Finding]) -> None:
    """Print the findings, each cure below its finding."""
    for finding in findings:
        output.write_toned(finding.level, f"{finding.level:<8}", f"{finding.check}: {finding.message}")
        if finding.cure:
            output.write_toned("", " " * 8, f"  {finding.cure}")
    counts = {level: sum(finding.level == level for finding in findings) for level in ("error", "warning")}
    output.write_toned("", "", f"\n{len(findings)} checks, {counts['error']} errors, {counts['warning']} warnings.")
