"""A small shop: one worker at a time keeps its ledger, and one process in the whole cluster fetches its prices.

    celery -A example_project.shop worker -X highlander

Start that on as many machines as you like: they need the same broker and the same PostgreSQL, and nothing else.
"""

from __future__ import annotations

import json
import os
import random

from celery import Celery
from celery.utils.log import get_task_logger

from celery_highlander import Highlander, Leadership

logger = get_task_logger(__name__)

app = Celery("shop", broker=os.environ.get("SHOP_BROKER_URL", "redis://localhost:6379/0"))
app.conf.highlander_url = os.environ.get("SHOP_DATABASE_URL", "postgresql+psycopg2://shop@localhost/shop")
app.conf.broker_connection_retry_on_startup = True
app.conf.task_routes = {"example_project.shop.ledger": {"queue": "highlander"}}
app.conf.update(json.loads(os.environ.get("SHOP_SETTINGS", "{}")))  # any other Celery settings, as one JSON object

PRICE_INTERVAL = float(os.environ.get("SHOP_PRICE_INTERVAL", "1.0"))  # seconds

# Installs the plugin in the app. Nothing is connected before a worker starts.
highlander = Highlander(app)


# The queue `highlander` is consumed by one worker at a time, the leader. `-X highlander` keeps the others off it.
# Acknowledged late: when a leader dies in the middle of a payment, the broker still has the message for the next one.
@app.task(acks_late=True, reject_on_worker_lost=True)
def ledger(payment: int, cents: int) -> None:
    """Enter one payment; no other worker writes to the ledger meanwhile."""
    enter(payment, cents)


# Runs in a process of its own beside exactly one worker; when that one goes away, another one starts it.
@highlander.process
def price_feed(leadership: Leadership) -> None:
    """Publish prices until told to stop: `wait` returns True as soon as this node does not lead any more."""
    while not leadership.wait(PRICE_INTERVAL):
        publish(random.randint(1, 10_000))


# What a shop would do with its own database and website.


def enter(payment: int, cents: int) -> None:
    """Write one payment into the ledger."""
    logger.info("payment %d: %.2f", payment, cents / 100)


def publish(cents: int) -> None:
    """Tell the website the price."""
    logger.info("price: %.2f", cents / 100)
