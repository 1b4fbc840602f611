"""The shop as a Django project: its database, its scheduler, its transactions, and a view that talks to one worker."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from tests.acceptance.conftest import MakeApplication

LIMIT = 60.0

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

WEB = """
import django
django.setup()
from django.db import transaction
from django.test import Client
from celery_highlander import StaleTermError
from celery_highlander.contrib.django import fence
from celery_highlander.worker.leadership import Leadership, TermInfo
from example_project.django_shop.models import Payment
from example_project.django_shop.tasks import sync_account

client = Client()
try:
    with transaction.atomic():
        sync_account.delay_on_commit("of a transaction that is rolled back")
        raise LookupError
except LookupError:
    pass
print(client.post("/pay/1").json())
print(client.post("/sync/view").json())
print(client.post("/prices/reload").json())

stale = Leadership(TermInfo("highlander", TOKEN - 1, 0.0, "django_shop", "", 0.0), None)
try:
    with transaction.atomic():
        Payment.objects.create(pk=2, cents=1, token=stale.token)
        fence(stale)
except StaleTermError as error:
    print(error)
"""


@pytest.mark.parametrize("broker", ["redis", pytest.param("rabbitmq", marks=pytest.mark.slow)])
def test_the_project_takes_its_database_guards_its_scheduler_and_finds_its_leader(
    application: MakeApplication, broker: str
) -> None:
    shop = application("example_project.django_shop", broker)
    django = {"DJANGO_SETTINGS_MODULE": "example_project.django_shop.settings"}
    shop.python("-m", "example_project.django_shop.manage", "migrate", "-v", "0")
    shop.serve(2)
    wait_until(lambda: {"beat", "highlander", "price-feed"} <= set(shop.acting()), LIMIT, "everything to be led")
    token = shop.token("highlander")

    said = shop.python("-c", WEB.replace("TOKEN", str(token)), env=django)

    feeder = shop.leader("price-feed")
    assert f"'node': '{feeder.name}@arena'" in said
    assert "{'ok': 'prices loaded anew'}" in said
    (others,) = [worker for worker in shop.workers if worker is not feeder]
    wait_until(lambda: "prices loaded anew" in feeder.log, LIMIT, "the leader to be told")
    wait_until(lambda: "syncing view" in shop.logs, LIMIT, "the task that was sent on commit")
    wait_until(lambda: re.search(r"syncing account-1", shop.logs), LIMIT, "an entry of django-celery-beat to run")
    assert "rolled back" not in shop.logs
    assert "prices loaded anew" not in others.log
    assert "is over: a later one has begun" in said
    assert shop.query("select id, token from django_shop_payment") == [(1, token)]
