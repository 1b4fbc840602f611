"""Singleton tasks in an app with a task class of its own, and while there is no database."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.arena.run_cluster import PATIENCE, result_of
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from tests.arena.servers import Database, Postgres
    from tests.conftest import MakeRunCluster

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


def test_an_apps_own_task_class_keeps_what_it_adds(runs: MakeRunCluster, postgres: Database) -> None:
    shop = runs()
    env = {
        "HIGHLANDER_ARENA_TASK_CLASS": "celery.contrib.django.task:DjangoTask",
        "DJANGO_SETTINGS_MODULE": "tests.arena.django_project",
    }
    said = shop.script(
        """
import django; django.setup()
from django.db import transaction
from celery.contrib.django.task import DjangoTask
task = app.tasks["skips"]
assert isinstance(task, DjangoTask) and isinstance(task, SingletonTask), type(task).__mro__
try:
    with transaction.atomic():
        assert task.delay_on_commit("gone") is None
        raise LookupError
except LookupError:
    pass
with transaction.atomic():
    task.delay_on_commit("kept")
    assert not app.connection().default_channel.client.llen("celery")
print(app.connection().default_channel.client.llen("celery"))
print(app.tasks["skips"].apply(("eager",)).get()["retries"])
""",
        env,
    )
    assert said.split() == ["1", "0"]
    shop.start_node("one", env=env)
    wait_until(lambda: shop.runs("kept"), PATIENCE, "the message of the transaction that was committed to run")
    assert not shop.runs("gone")
    assert postgres.execute("select count(*) from highlander_run where key >= 0") == [(0,)]


def test_without_a_database_runs_are_retried_or_fail_or_go_without_a_lock(
    runs: MakeRunCluster, postgres_server: Postgres, postgres: Database
) -> None:
    shop = runs()
    shop.start_node("one", concurrency=4)
    assert result_of(shop.call("skips", "warm"))["retries"] == 0
    postgres_server.execute(f'alter database "{postgres.name}" allow_connections false')
    terminated = "select count(*) from pg_stat_activity where datname = %s"
    postgres_server.terminate_backends("highlander %")
    wait_until(lambda: postgres_server.execute(terminated, postgres.name) == [(0,)], PATIENCE, "no session")
    raised, went = (shop.call(task, task) for task in ("without_db_raises", "without_db_runs"))
    retried = shop.call("without_db_retries", "without_db_retries")
    with pytest.raises(Exception, match="cannot be locked") as caught:
        result_of(raised)
    assert type(caught.value).__name__ == "DatabaseUnavailableError"
    assert result_of(went)["token"] is None
    assert "runs WITHOUT its lock" in shop.workers[0].log
    wait_until(lambda: retried.state == "RETRY", PATIENCE, "a retry")
    began = time.monotonic()
    postgres_server.execute(f'alter database "{postgres.name}" allow_connections true')
    assert result_of(retried)["retries"] == 0
    assert time.monotonic() - began < 20.0
    assert shop.workers[0].is_running
    shop.nothing_is_held()
