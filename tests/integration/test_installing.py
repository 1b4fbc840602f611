"""Every way to bring the plugin into an app leads to a worker that takes part, once."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.arena.cluster import ROOT, TIMELY, Worker
from tests.arena.requirements import require
from tests.arena.servers import Database, FilesystemBroker, Postgres
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 60.0
HELD = """select t.worker, t.pid from highlander_singleton s join highlander_term t using (key, token)
where s.name = %s and t.elected_at is not null and exists (
    select from pg_locks l where l.locktype = 'advisory'
    and (l.classid::bigint << 32) | l.objid::bigint = s.key)"""


class Project:
    """A user's project in a directory of its own, and the processes that run it."""

    def __init__(self, directory: Path, database: Database) -> None:
        self.directory = directory
        self.database = database
        self.conf = {**TIMELY, **FilesystemBroker(directory / "broker").conf()}
        self.conf["broker_connection_retry_on_startup"] = True
        self.workers: list[Worker] = []

    def write(self, code: str, name: str = "proj") -> None:
        """Write a module; `conf` and `URL` are at hand in it."""
        head = f"import json\nconf = json.loads({json.dumps(self.conf)!r})\nURL = {self.database.url()!r}\n"
        (self.directory / f"{name}.py").write_text(head + code)

    def run(self, *argv: str, path: str | None = None) -> Worker:
        """Start a Python process in the project; `path` is its PYTHONPATH, the project's directory by default."""
        env = {**os.environ, "PYTHONPATH": path or f"{self.directory}:{ROOT}", "PYTHONWARNINGS": "ignore"}
        log = self.directory / f"log{len(self.workers)}"
        worker = Worker("w", [sys.executable, *argv], env, log, self.directory)
        self.workers.append(worker)
        return worker

    def worker(self, *options: str) -> Worker:
        """Start a worker with the `celery` command."""
        return self.run("-m", "celery", "-A", "proj", "worker", "-c", "1", "-l", "INFO", *options)

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run another `celery` command to its end."""
        process = self.run("-m", "celery", "-A", "proj", *words)
        code = process.wait(LIMIT)
        return subprocess.CompletedProcess(words, code, process.log)

    def leader(self, singleton: str = "highlander") -> int:
        """Wait until somebody leads; the pid of its worker."""

        def pids() -> list[int]:
            ready = self.database.execute("select to_regclass('highlander_singleton') is not null")
            return [pid for _, pid in self.database.execute(HELD, singleton)] if ready == [(True,)] else []

        logs = "\n".join(worker.log for worker in self.workers)
        (pid,) = wait_until(pids, LIMIT, f"a leader of {singleton!r}\n{logs}")
        return int(pid)


@pytest.fixture
def project(tmp_path: Path, postgres: Database) -> Iterator[Project]:
    project = Project(tmp_path, postgres)
    yield project
    for worker in project.workers:
        worker.close()


def python(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# -- a setting alone ---------------------------------------------------------------------------------------------------

SETTING_ALONE = "from celery import Celery\napp = Celery('proj')\napp.conf.update(conf, highlander_url=URL)\n"


@pytest.mark.postgres
def test_a_setting_alone_is_enough(project: Project) -> None:
    project.write(SETTING_ALONE)
    worker = project.worker("-X", "highlander", "--highlander-priority", "3")
    assert project.leader() == worker.pid
    assert project.database.execute(
        "select count(*) from pg_stat_activity where application_name ~ '^highlander proj [^ ]+ p3$'"
    ) == [(1,)]
    status = project.command("highlander", "status", "--json")
    assert status.returncode == 0
    assert json.loads(status.stdout)["singletons"][0]["pid"] == worker.pid


@pytest.mark.postgres
def test_the_celery_program_runs_a_process_of_an_app_that_is_in_the_working_directory_only(project: Project) -> None:
    project.write("""
from pathlib import Path
from celery import Celery
from celery_highlander import Highlander

app = Celery("proj")
app.conf.update(conf, highlander_url=URL)
highlander = Highlander(app)


@highlander.process
def feed(leadership):
    Path("ran.txt").write_text(str(leadership.token))
    leadership.wait()
""")
    program = shutil.which("celery", path=Path(sys.executable).parent)
    assert program is not None
    worker = project.run(program, "-A", "proj", "worker", "-c", "1", "-l", "INFO", path=str(ROOT))
    wait_until((project.directory / "ran.txt").exists, LIMIT, f"the process\n{worker.log}")


@pytest.mark.postgres
def test_a_worker_that_is_not_eligible_stands_aside(project: Project) -> None:
    project.write(SETTING_ALONE)
    aside = project.worker("-n", "aside@arena", "--no-highlander-eligible")
    sessions = "select count(*) from pg_stat_activity where application_name ~ '^highlander proj [^ ]+ x0$'"
    wait_until(lambda: project.database.execute(sessions) == [(1,)], LIMIT, "the lock session of the one aside")
    wait_until(lambda: " ready." in aside.log, LIMIT, "the one aside to be ready")
    other = project.worker("-n", "other@arena")
    assert project.leader() == other.pid


def test_the_worker_has_the_options_with_either_way_of_installing(project: Project) -> None:
    explicit = SETTING_ALONE + "from celery_highlander import Highlander\nHighlander(app)\nHighlander(app)\n"
    for code in (SETTING_ALONE, explicit):
        project.write(code)
        shown = project.command("worker", "--help").stdout
        for option in ("--highlander-eligible", "--no-highlander-eligible", "--highlander-priority"):
            assert len(re.findall(rf"(?<![\w-]){option}\b", shown)) == 1, shown


def test_an_app_without_the_setting_is_left_alone(project: Project) -> None:
    project.write(
        "from celery import Celery\napp = Celery('proj')\n"
        "app.conf.update({key: conf[key] for key in conf if not key.startswith('highlander')})\n"
    )
    worker = project.worker()
    wait_until(lambda: " ready." in worker.log, LIMIT, "the worker to be ready")
    assert "highlander" not in worker.log
    done = project.command("highlander", "status")
    assert done.returncode == 78
    assert "Set highlander_url" in done.stdout


@pytest.mark.postgres
def test_djangos_namespaced_settings_are_found(project: Project) -> None:
    project.write(
        "from types import SimpleNamespace\nfrom celery import Celery\n"
        "settings = SimpleNamespace(**{'CELERY_' + key.upper(): value for key, value in conf.items()})\n"
        "settings.CELERY_HIGHLANDER_URL = URL\nsettings.CELERY_HIGHLANDER_QUEUES = ['ledger']\n"
        "app = Celery('proj')\napp.config_from_object(settings, namespace='CELERY')\n"
    )
    worker = project.worker()
    assert project.leader("ledger") == worker.pid


def test_an_unknown_namespaced_setting_is_named_with_a_suggestion(project: Project) -> None:
    project.write(
        "from types import SimpleNamespace\nfrom celery import Celery\n"
        "settings = SimpleNamespace(CELERY_HIGHLANDER_URL=URL, CELERY_HIGHLANDER_LEASE_DURATON=3.0)\n"
        "app = Celery('proj')\napp.config_from_object(settings, namespace='CELERY')\n"
    )
    done = project.command("highlander", "status")
    assert done.returncode == 78
    assert "did you mean 'highlander_lease_duration'" in done.stdout


# -- in the code -------------------------------------------------------------------------------------------------------


@pytest.mark.postgres
def test_installing_twice_installs_once(project: Project) -> None:
    project.write(
        SETTING_ALONE + "from celery_highlander import Highlander\n"
        "assert Highlander(app) is Highlander(app)\nassert len(app.steps['worker']) == 1\n"
        "Highlander(app).queue('ledger')\n"
    )
    worker = project.worker()
    assert project.leader() == worker.pid
    assert project.leader("ledger") == worker.pid
    assert project.database.execute(
        "select count(*) from pg_stat_activity where application_name like 'highlander proj %'"
    ) == [(1,)]


@pytest.mark.postgres
def test_a_program_may_start_its_worker_without_the_celery_command(project: Project) -> None:
    project.write(SETTING_ALONE + "from celery_highlander import Highlander\nHighlander(app)\n")
    (project.directory / "serve.py").write_text(
        "from proj import app\nif __name__ == '__main__':\n"
        "    app.worker_main(['worker', '-c', '1', '-l', 'INFO', '-X', 'highlander', '--highlander-priority', '2'])\n"
    )
    worker = project.run("serve.py")
    assert project.leader() == worker.pid


# -- engines -----------------------------------------------------------------------------------------------------------

ENGINE = """
from celery import Celery
from sqlalchemy import create_engine, event
from celery_highlander import Highlander

app = Celery('proj')
app.conf.update(conf)
engine = create_engine(URL, pool_size=1)
"""


@pytest.mark.postgres
def test_an_engine_of_the_application_gives_its_url_and_not_its_pool(project: Project) -> None:
    project.write(ENGINE + "Highlander(app, engine=engine)\nengine.connect()\n")
    worker = project.worker()
    assert project.leader() == worker.pid
    assert project.command("highlander", "status").returncode == 0


@pytest.fixture
def rotating(project: Project) -> Iterator[Project]:
    """A project whose database role has a password that the project fetches anew for each connection."""
    require(Postgres.available())
    with Postgres() as server:
        server.execute("create role clerk login password 'first' superuser")
        hba = server.data / "pg_hba.conf"
        hba.write_text("host all clerk 0.0.0.0/0 scram-sha-256\n" + hba.read_text())
        server.restart()
        project.database = Database(server, "postgres")
        (project.directory / "password").write_text("first")
        project.write(
            f"URL = {server.url(user='clerk')!r}\nimport pathlib\n" + ENGINE + "\n"
            "@event.listens_for(engine, 'do_connect')\n"
            "def give_password(dialect, record, arguments, keywords):\n"
            "    keywords['password'] = pathlib.Path('password').read_text()\n"
            "def make_engine():\n    return engine\n"
            "app.conf.highlander_engine = 'proj:make_engine'\nHighlander(app)\n"
        )
        yield project


@pytest.mark.slow
@pytest.mark.postgres
def test_a_password_that_rotates_is_asked_for_at_each_connection(rotating: Project) -> None:
    worker = rotating.worker()
    assert rotating.leader() == worker.pid
    token = rotating.database.execute("select token from highlander_singleton")
    rotating.database.execute("alter role clerk password 'second'")
    (rotating.directory / "password").write_text("second")
    rotating.database.server.terminate_backends("highlander proj %")
    wait_until(
        lambda: rotating.database.execute("select token from highlander_singleton") != token, LIMIT, "the next term"
    )
    assert rotating.leader() == worker.pid
    for word in ("first", "second"):
        assert f"password={word}" not in worker.log
    assert rotating.command("highlander", "status").returncode == 0


# -- importing ---------------------------------------------------------------------------------------------------------

LOADED = "sorted({name.partition('.')[0] for name in sys.modules} & {'celery', 'kombu', 'sqlalchemy', 'psycopg2'})"


def test_importing_the_package_loads_nothing() -> None:
    assert python(f"import sys, celery_highlander; print({LOADED})") == "[]"


def test_the_names_of_the_package_are_found_when_they_are_used() -> None:
    import celery_highlander

    for name in celery_highlander.__all__:
        assert getattr(celery_highlander, name).__name__ if name[0].isupper() else getattr(celery_highlander, name)
    assert celery_highlander.__version__
    with pytest.raises(AttributeError, match="nonesuch"):
        _: Any = celery_highlander.nonesuch


def test_the_keeper_loads_no_celery() -> None:
    loaded = "sorted({name.partition('.')[0] for name in sys.modules} & {'celery', 'kombu', 'billiard'})"
    assert python(f"import sys, celery_highlander.keeper.__main__; print({loaded})") == "[]"


def test_what_runs_in_workers_and_beats_loads_no_database_driver() -> None:
    loaded = "sorted({name.partition('.')[0] for name in sys.modules} & {'sqlalchemy', 'psycopg', 'psycopg2'})"
    code = f"""
import sys
from celery import Celery
from celery_highlander import Highlander, singleton_task
app = Celery('proj')
app.conf.highlander_url = 'postgresql+psycopg2://app:s3cret@127.0.0.1:1/shop?sslmode=prefer'
highlander = Highlander(app)
highlander.queue('ledger')
@singleton_task
def once(): pass
app.finalize()
import celery_highlander.beat.scheduler, celery_highlander.beat.ledger, celery_highlander.worker.bootsteps
from celery_highlander.worker.banner import lines_of
settings = highlander.settings()
print(highlander.target(settings).connect_args, lines_of(highlander, settings, ['ledger'], [])[2].split()[-1], {loaded})
"""
    assert python(code) == "{} postgresql+psycopg2://app:***@127.0.0.1:1/shop []"


@pytest.mark.postgres
def test_a_worker_has_its_driver_in_its_keepers_memory_alone(project: Project) -> None:
    project.write(SETTING_ALONE)
    worker = project.worker()
    project.leader()
    from pathlib import Path

    assert "psycopg2" in Path(f"/proc/{worker.keeper}/maps").read_text()
    for pid in (worker.pid, *worker.children):
        assert "psycopg2" not in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.postgres
def test_a_running_keeper_has_no_celery_in_its_memory(project: Project) -> None:
    project.write(SETTING_ALONE)
    worker = project.worker()
    project.leader()
    from pathlib import Path

    mapped = Path(f"/proc/{worker.keeper}/maps").read_text()
    assert "psycopg2" in mapped
    for name in ("billiard", "kombu", "celery/"):
        assert name not in mapped.replace("celery_highlander", "")


def test_installing_opens_no_connection() -> None:
    code = """
import socket
def refuse(*args): raise AssertionError('a connection was opened')
socket.socket.connect = refuse
import psycopg2
psycopg2.connect = refuse
from celery import Celery
from celery_highlander import Highlander
app = Celery('proj')
app.conf.highlander_url = 'postgresql+psycopg2://app:s3cret@127.0.0.1:1/shop'
highlander = Highlander(app)
highlander.queue('ledger')
highlander.settings()
print('s3cret' in repr(highlander) + repr(highlander.settings()) + repr(highlander.target(highlander.settings())))
"""
    assert python(code) == "False"
