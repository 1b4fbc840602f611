"""The demonstration's stage: PostgreSQL, a broker, workers behind a proxy each, and somebody who pays all the time."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import shutil
import tempfile
import threading
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import psycopg2

from example_project.demo.tally import Tally
from example_project.demo.watched import PROCESS, QUEUE
from tests.arena.cluster import TIMELY, Cluster, Worker
from tests.arena.proxy import TcpProxy
from tests.arena.servers import FilesystemBroker, Postgres, Redis
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

PAYMENTS_INTERVAL = 0.04
PRICE_INTERVAL = 0.002
WORKERS = 3
_PATIENCE = 30.0  # seconds that a worker may take to start on a busy machine


class ShopCluster(Cluster):
    """Workers of the shop."""

    app_path: ClassVar[str] = "example_project.shop"

    def environment(
        self, conf: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """The environment of a worker: the shop's own variables, and the module that writes the journals."""
        settings = {**self.conf, **(conf or {}), "imports": ["example_project.demo.watched"], "highlander_beat": False}
        own = {
            "SHOP_SETTINGS": json.dumps(settings),
            "SHOP_DATABASE_URL": self.url,
            "SHOP_JOURNALS": str(self.journals),
            "SHOP_PRICE_INTERVAL": str(PRICE_INTERVAL),
            "TMPDIR": str(self.directory),
        }
        return super().environment(conf, {**own, **(env or {})})


class Stage:
    """Everything that the demonstration needs; `close` leaves nothing behind."""

    def __init__(self) -> None:
        self._exits = contextlib.ExitStack()
        self._proxies: dict[str, TcpProxy] = {}
        self._numbers = itertools.count(1)
        self._stop_paying = threading.Event()
        self._sent = 0
        self.timing = TIMELY
        self.has_redis = Redis.available() is None and importlib.util.find_spec("redis") is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop_paying.set()
        self._exits.close()

    # -- building ------------------------------------------------------------------------------------------------------

    def start_servers(self) -> None:
        """Start PostgreSQL and the broker; all their files are below one temporary directory."""
        directory = Path(tempfile.mkdtemp(prefix="highlander-demo-"))
        directory.chmod(0o755)  # PostgreSQL does not run as root
        self._exits.callback(shutil.rmtree, directory, ignore_errors=True)
        self._exits.callback(setattr, tempfile, "tempdir", tempfile.tempdir)
        tempfile.tempdir = str(directory)  # where the arena keeps what it would keep for a next time
        self.postgres = self._exits.enter_context(Postgres(fresh=True))
        if self.has_redis:
            url = self._exits.enter_context(Redis()).url()
            broker: dict[str, Any] = {"broker_url": url}
        else:
            broker = FilesystemBroker(directory / "broker").conf()
        self.cluster = ShopCluster(self.postgres.url(), broker, directory)
        self.tally = Tally(self.cluster.journals)
        self._exits.enter_context(self.cluster)

    @property
    def in_flight(self) -> float:
        """How many payments may be lost with a worker that is killed, by no fault of the election.

        With Redis none; with files everything that the worker has fetched.
        """
        return 0 if self.has_redis else inf

    def start_worker(self) -> Worker:
        """Start one more worker, with a proxy of its own to the database; a later one has a lower priority."""
        number = next(self._numbers)
        name = f"w{number}"
        proxy = self._proxies[name] = self._exits.enter_context(TcpProxy("127.0.0.1", self.postgres.port))
        return self.cluster.start(
            *("-X", QUEUE, "--without-mingle", "--highlander-priority", str(-number)),
            conf={"highlander_url": self.postgres.url(host=proxy.host, port=proxy.port)},
            name=name,
        )

    def start_paying(self) -> None:
        """Begin to send payments, and go on until the end."""
        payer = threading.Thread(target=self._pay, name="payer", daemon=True)
        payer.start()
        self._exits.callback(payer.join, 5.0)

    def _pay(self) -> None:
        app = self.cluster.app
        while not self._stop_paying.wait(PAYMENTS_INTERVAL):
            app.send_task("example_project.shop.ledger", args=(self._sent, 1999), queue=QUEUE)
            self._sent += 1

    def stop_paying(self) -> None:
        """Send no more payments."""
        self._stop_paying.set()

    # -- looking -------------------------------------------------------------------------------------------------------

    @property
    def sent(self) -> int:
        """How many payments were sent."""
        return self._sent

    @property
    def workers(self) -> list[Worker]:
        """The workers that run."""
        return [worker for worker in self.cluster.workers if worker.is_running]

    def leader(self) -> Worker:
        """Wait until one worker leads both singletons, and return it."""

        def found() -> list[Worker]:
            acting = self.cluster.acting()
            pids = {acting.get(name, (0, 0))[0] for name in (QUEUE, PROCESS)}
            return [worker for worker in self.workers if {worker.pid} == pids]

        return wait_until(found, _PATIENCE, "one leader of both singletons")[0]

    def await_nodes(self) -> None:
        """Wait until all workers that run take part."""
        expected = len(self.workers)
        wait_until(lambda: self._nodes() >= expected, _PATIENCE, f"{expected} nodes to take part")

    def _nodes(self) -> int:
        sql = "select count(*) from pg_stat_activity where application_name like 'highlander shop %'"
        with contextlib.suppress(psycopg2.Error):
            return int(self.cluster.query(sql)[0][0])
        return 0

    def unpaid(self, since: int, until: int) -> list[int]:
        """Return the payments from number `since` up to `until` that are not in the ledger."""
        ended = self.tally.of(QUEUE).ended
        return [number for number in range(since, until) if str(number) not in ended]

    def logs(self, lines: int = 8) -> str:
        """Return how the workers' logs end, for whoever has to find out what went wrong."""
        return "\n".join(
            f"--- {worker.name}, {'running' if worker.is_running else 'dead'}\n"
            + "\n".join(worker.log.splitlines()[-lines:])
            for worker in self.cluster.workers
        )

    def keep_logs(self, directory: str) -> None:
        """Copy the logs and journals to `directory`."""
        target = Path(directory)
        target.mkdir(parents=True, exist_ok=True)
        for log in self.cluster.directory.glob("*.log"):
            shutil.copy(log, target)
        shutil.copytree(self.cluster.journals, target / "journals", dirs_exist_ok=True)

    # -- breaking ------------------------------------------------------------------------------------------------------

    def cut_off(self, worker: Worker) -> None:
        """Drop everything between a worker and the database, in both directions; nothing is closed."""
        self._proxies[worker.name].cut()

    def heal(self, worker: Worker) -> None:
        """Deliver again."""
        self._proxies[worker.name].heal()
