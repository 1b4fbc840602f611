"""The example project, in plain Celery, Django and Flask: what its README says can be seen."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.arena.cluster import ROOT
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.acceptance.conftest import Application

LIMIT = 60.0
DEPLOY = ROOT / "example_project/deploy"


def logs(application: Application) -> str:
    return "\n".join(worker.log for worker in application.workers)


def in_log(application: Application, pattern: str, what: str) -> str:
    return wait_until(lambda: (re.search(pattern, logs(application)) or [""])[0], LIMIT, what)


@pytest.mark.postgres
def test_the_plain_shop_does_all_that_it_shows(application: Callable[[str], Application]) -> None:
    shop = application("example_project.shop")
    assert "sent 3 payments" in shop.python("example_project.pay", "3")
    shop.serve(2)
    wait_until(lambda: {"beat", "highlander", "price_feed"} <= set(shop.acting()), LIMIT, "everything to be led")
    wait_until(lambda: shop.query("select count(*) from payment")[0][0] == 3, LIMIT, "the payments")
    token = shop.token("highlander")
    assert shop.query("select distinct token from payment") == [(token,)]
    in_log(shop, r"price: \d", "a price")
    in_log(shop, r"syncing account-\d", "the books to be closed by beat")
    health = shop.command("highlander", "health", "--url", f"http://127.0.0.1:{shop.ports[0]}")
    assert health.returncode == 0, health.stderr

    leader = shop.leader("highlander")
    leader.close()  # kill -9, and whatever is left of it
    shop.leader("highlander", other_than=token)
    shop.python("example_project.pay", "1")
    wait_until(lambda: shop.query("select count(*) from payment")[0][0] == 4, LIMIT, "a payment on the other worker")
    assert len(shop.query("select distinct token from payment")) == 2


@pytest.mark.slow
@pytest.mark.postgres
def test_the_django_shop_takes_its_database_and_guards_its_scheduler(application: Callable[[str], Application]) -> None:
    shop = application("example_project.django_shop")
    shop.python("example_project.django_shop.manage", "migrate", "-v", "0")
    code = """
import os, json
os.environ['DJANGO_SETTINGS_MODULE'] = 'example_project.django_shop.settings'
import django; django.setup()
from django_celery_beat.models import IntervalSchedule, PeriodicTask
every, _ = IntervalSchedule.objects.get_or_create(every=1, period='seconds')
task = 'example_project.django_shop.tasks.sync_account'
PeriodicTask.objects.create(name='sync', interval=every, task=task, args=json.dumps(['beat']))
from example_project.django_shop.tasks import enter
enter.delay(1, 1999)
"""
    run(shop, code)
    shop.serve(2)
    wait_until(lambda: {"beat", "highlander", "price-feed"} <= set(shop.acting()), LIMIT, "everything to be led")
    wait_until(lambda: shop.query("select count(*) from django_shop_payment")[0][0] == 1, LIMIT, "the payment")
    assert shop.query("select token from django_shop_payment") == [(shop.token("highlander"),)]
    in_log(shop, "syncing beat", "an entry of django-celery-beat to run")
    answers = run(
        shop,
        """
import os
os.environ['DJANGO_SETTINGS_MODULE'] = 'example_project.django_shop.settings'
import django; django.setup()
from django.test import Client
client = Client()
print(client.get('/sync/view').json())
print(client.get('/prices/reload').json())
""",
    )
    in_log(shop, "syncing view", "the task that was sent on commit")
    leader = shop.leader("price-feed")
    assert f"'node': '{leader.name}@arena'" in answers
    assert "prices loaded anew" in answers
    wait_until(lambda: "prices loaded anew" in leader.log, LIMIT, "the leader to be told")


@pytest.mark.slow
@pytest.mark.postgres
def test_the_flask_shop_lends_its_engine_and_finds_its_leader(application: Callable[[str], Application]) -> None:
    shop = application("example_project.flask_shop")
    shop.query("create table flask_payment (id bigint primary key)")
    shop.serve(1)
    wait_until(lambda: {"highlander", "price-feed"} <= set(shop.acting()), LIMIT, "everything to be led")
    answers = run(
        shop,
        """
from example_project.flask_shop import create_app
client = create_app().test_client()
print(client.post('/pay/7').json)
print(client.post('/prices/reload').json)
""",
    )
    assert "'payment': 7" in answers
    assert f"'node': '{shop.leader('price-feed').name}@arena'" in answers
    assert "prices loaded anew" in answers
    wait_until(lambda: shop.query("select id from flask_payment") == [(7,)], LIMIT, "the payment")


def run(shop: Application, code: str) -> str:
    """Run a program of the application, a web process for instance."""
    path = shop.directory / "program.py"
    path.write_text(code)
    argv = [sys.executable, str(path)]
    environment = shop.environment()
    done = subprocess.run(argv, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# -- deployment --------------------------------------------------------------------------------------------------------


def manifests(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def test_the_kubernetes_manifest_lets_a_worker_finish_and_probes_it() -> None:
    deployment, budget = manifests("kubernetes.yaml")
    spec = deployment["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["terminationGracePeriodSeconds"] >= 30
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 1
    assert budget["spec"]["selector"] == deployment["spec"]["selector"]
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "metrics"}
    (settings,) = [entry["value"] for entry in container["env"] if entry["name"] == "SHOP_SETTINGS"]
    assert f":{container['ports'][0]['containerPort']}" in settings


def test_the_compose_file_has_what_its_readme_says() -> None:
    (compose,) = manifests("compose.yaml")
    assert {"postgres", "rabbitmq", "flower", "prometheus", "worker-1", "worker-2", "worker-3"} == set(
        compose["services"]
    )
    (prometheus,) = manifests("prometheus.yaml")
    (job,) = prometheus["scrape_configs"]
    assert [target.partition(":")[0] for target in job["static_configs"][0]["targets"]] == [
        "worker-1",
        "worker-2",
        "worker-3",
    ]
    for volume in compose["services"]["prometheus"]["volumes"]:
        assert (DEPLOY / volume.split(":")[0]).is_file()


@pytest.mark.parametrize("name", ["shop-worker.service", "shop-beat.service"])
def test_a_systemd_unit_signals_the_main_process_alone(name: str) -> None:
    text = (DEPLOY / name).read_text()
    assert "KillMode=mixed" in text
    assert int(re.findall(r"TimeoutStopSec=(\d+)", text)[0]) >= 30
    if shutil.which("systemd-analyze") is not None:
        done = subprocess.run(["systemd-analyze", "verify", DEPLOY / name], capture_output=True, text=True, check=False)
        complaints = [line for line in done.stderr.splitlines() if name in line and "is not executable" not in line]
        assert complaints == []
