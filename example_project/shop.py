"""A small shop that uses all of it: beat, a ledger queue, a price feed, a task that runs once at a time, fenced writes.

    celery -A example_project.shop worker -X highlander

Start that on as many machines as you like: they need the same broker and the same PostgreSQL, and nothing else.
"""

from __future__ import annotations

import json
import os
import random

from celery import Celery
from celery.utils.log import get_task_logger
from sqlalchemy import create_engine, text

from celery_highlander import Highlander, Leadership, current_leadership, singleton_task

logger = get_task_logger(__name__)

DATABASE_URL = os.environ.get("SHOP_DATABASE_URL", "postgresql+psycopg2://shop@localhost/shop")
BROKER_URL = os.environ.get("SHOP_BROKER_URL", "redis://localhost:6379/0")
BEAT_SECONDS = float(os.environ.get("SHOP_BEAT_SECONDS", "30"))
PRICE_INTERVAL = float(os.environ.get("SHOP_PRICE_INTERVAL", "1.0"))  # seconds

app = Celery("shop", broker=BROKER_URL)
app.conf.highlander_url = DATABASE_URL
app.conf.broker_connection_retry_on_startup = True
app.conf.task_routes = {"example_project.shop.ledger": {"queue": "highlander"}}
app.conf.beat_schedule = {
    "close-the-books": {"task": "example_project.shop.close_the_books", "schedule": BEAT_SECONDS},
}
app.conf.highlander_beat = True  # beat runs beside exactly one worker
app.conf.update(json.loads(os.environ.get("SHOP_SETTINGS", "{}")))  # any other Celery settings, as one JSON object

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


# One run at a time for each account, whichever worker runs it and whatever way its message took.
@singleton_task(unique_on=["account"])
def sync_account(account: str, full: bool = False) -> str:
    """Fetch the statements of an account."""
    logger.info("syncing %s%s", account, " in full" if full else "")
    return account


# Sent by beat, once for each time that it is due, whatever happens to the beat that sends it.
@app.task
def close_the_books() -> None:
    """Sync every account that has a payment."""
    for account in accounts():
        sync_account.delay(account)


# What a shop would do with its own database and website. The table is made by `python -m example_project.pay`.


def enter(payment: int, cents: int) -> None:
    """Write one payment into the ledger, in one transaction with the check that this term still leads."""
    engine = create_engine(DATABASE_URL)
    with engine.begin() as connection:
        current_leadership().fence(connection)  # a stale leader's write fails here
        connection.execute(
            text("insert into payment (id, cents, token) values (:id, :cents, :token) on conflict do nothing"),
            {"id": payment, "cents": cents, "token": current_leadership().token},
        )
    engine.dispose()
    logger.info("payment %d: %.2f", payment, cents / 100)


def accounts() -> list[str]:
    """Return the accounts that have a payment."""
    engine = create_engine(DATABASE_URL)
    with engine.connect() as connection:
        found = connection.execute(text("select distinct id % 3 from payment"))
        names = [f"account-{number}" for (number,) in found]
    engine.dispose()
    return names


def publish(cents: int) -> None:
    """Tell the website the price."""
    logger.info("price: %.2f", cents / 100)
