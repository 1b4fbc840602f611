"""Keys of singleton tasks: held by sessions that are driven by hand, and by the runs of real workers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from celery_highlander.election.lease import Timing
from celery_highlander.store import connecting, migrations, waiting
from celery_highlander.store.connecting import Target
from celery_highlander.store.runs import RunLocks, Try
from celery_highlander.store.terms import Identity, application_name
from celery_highlander.store.waiting import Waiting
from tests.arena.cluster import Cluster
from tests.integration.commands import invoke

if TYPE_CHECKING:
    from subprocess import CompletedProcess

    from typing_extensions import Self


class Holder:
    """A lock session with runs, set up as the keeper does it; `lose` ends it as a crash does."""

    def __init__(self, url: str, node: str = "n1", session: int = 1, namespace: str = "shop", schema: str = "") -> None:
        name = application_name(namespace, node, 0, eligible=True)
        self.connection = connecting.open_connection(Target(url, {}), name)
        server = connecting.check_server(self.connection)
        migrations.ensure(self.connection, schema, may_migrate=True)
        self.schema, self.namespace = schema, namespace
        self.runs = RunLocks(self.connection, server, f"{node}/{session}", namespace, schema, Timing().lease)
        self.runs.register(Identity(node, f"{node}@arena", 4711))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.lose()

    def take(self, key: int, name: str, task_id: str) -> bool:
        found = self.runs.take([Try(1, key, 1, 0, name, "shop.sync", task_id, fenced=False)], (), ())
        return found[1].taken

    def send(self, key: int, name: str, task_id: str, lives: float | None = None) -> None:
        message = Waiting(key, self.namespace, name, "shop.sync", task_id, "slow", lives)
        assert waiting.claim(self.connection, self.schema, message) is None

    def lose(self) -> None:
        self.connection.close()


class KeyedCluster(Cluster):
    """Workers of the app with singleton tasks."""

    app_path = "tests.arena.keyed_shop"

    def post(self, task: str, *args: Any, task_id: str, queue: str = "celery") -> None:
        self.app.send_task(task, args=args, task_id=task_id, queue=queue)

    def held(self) -> dict[str, str]:
        return states(self.url)

    def free(self, *words: str) -> CompletedProcess[str]:
        done = self.command("highlander", "free", *words)
        assert "Traceback" not in done.stderr
        return done


def status(url: str, *words: str, **conf: Any) -> Any:
    return invoke(["status", "--tasks", *words], {"highlander_url": url, **conf})


def shown(url: str, **conf: Any) -> dict[str, Any]:
    done = status(url, "--json", **conf)
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout))


def states(url: str) -> dict[str, str]:
    """The state of each task id."""
    return {run["task_id"]: run["state"] for run in shown(url)["runs"]}
