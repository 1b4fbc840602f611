"""The shop in plain Celery: what it does, and goes on doing when its leader is killed."""

from __future__ import annotations

import re
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from tests.acceptance.conftest import MakeApplication

LIMIT = 60.0

pytestmark = pytest.mark.postgres


@pytest.mark.parametrize("broker", ["redis", pytest.param("rabbitmq", marks=pytest.mark.slow)])
def test_the_shop_does_all_that_it_shows_and_another_worker_goes_on(application: MakeApplication, broker: str) -> None:
    shop = application("example_project.shop", broker)
    shop.serve(2)
    assert "sent 3 payments" in shop.python("-m", "example_project.pay", "3")
    wait_until(lambda: {"beat", "highlander", "price_feed"} <= set(shop.acting()), LIMIT, "everything to be led")
    probe = [sys.executable, "-m", "celery", "-A", "example_project.shop", "highlander", "health"]
    for port in shop.ports:  # at whoever leads, and at a standby
        assert "well" in shop.run(probe, env=shop.listening(port))
    wait_until(lambda: shop.query("select count(*) from payment")[0][0] == 3, LIMIT, "the payments")
    token = shop.token("highlander")
    assert shop.query("select distinct token from payment") == [(token,)]
    wait_until(lambda: re.search(r"price: \d", shop.logs), LIMIT, "a price")
    wait_until(lambda: re.search(r"syncing account-\d", shop.logs), LIMIT, "the books to be closed by beat")

    shop.leader("highlander").send(signal.SIGKILL)
    survivor = shop.leader("highlander", other_than=token)
    wait_until(
        lambda: {pid for pid, _ in shop.acting().values()} == {survivor.pid} and len(shop.acting()) == 3,
        LIMIT,
        "the other worker to lead everything",
    )
    shop.python("-m", "example_project.pay", "1")
    wait_until(lambda: shop.query("select count(*) from payment")[0][0] == 4, LIMIT, "a payment on the other worker")
    assert sorted(shop.query("select distinct token from payment")) == [(token,), (shop.token("highlander"),)]
