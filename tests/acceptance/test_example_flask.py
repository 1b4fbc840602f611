"""The shop behind Flask: the engine of its factory, tasks in the app's context, a view that talks to one worker."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from tests.acceptance.conftest import MakeApplication

LIMIT = 60.0

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

WEB = """
from example_project.flask_shop import create_app
client = create_app().test_client()
print(client.post("/pay/7").json)
print(client.post("/sync/view").json)
print(client.post("/prices/reload").json)
"""


def test_the_app_lends_its_engine_and_its_context_and_finds_its_leader(application: MakeApplication) -> None:
    shop = application("example_project.flask_shop")
    shop.run([sys.executable, "-m", "flask", "--app", "example_project.flask_shop", "shop", "init-db"])
    (worker,) = shop.serve(1)
    wait_until(lambda: {"beat", "highlander", "price-feed"} <= set(shop.acting()), LIMIT, "everything to be led")

    said = shop.python("-c", WEB)

    assert f"'node': '{worker.name}@arena'" in said
    assert "{'ok': 'prices loaded anew'}" in said
    token = shop.token("highlander")
    wait_until(lambda: shop.query("select id, token from flask_payment") == [(7, token)], LIMIT, "the payment")
    wait_until(lambda: "syncing view for example_project.flask_shop" in worker.log, LIMIT, "a task in the context")
    wait_until(lambda: "syncing account-1" in worker.log, LIMIT, "the books to be closed by beat")
    wait_until(lambda: "price of example_project.flask_shop" in worker.log, LIMIT, "a price")
