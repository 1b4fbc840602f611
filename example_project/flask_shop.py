"""The shop behind Flask: an app factory, its engine, and a view that talks to the leader of the price feed.

celery -A example_project.flask_shop worker -X highlander
flask --app example_project.flask_shop run
"""

from __future__ import annotations

import json
import os
import random
from typing import Any

from celery import Celery, Task, shared_task
from celery.utils.log import get_task_logger
from celery.worker.control import control_command
from flask import Blueprint, Flask, current_app, jsonify
from sqlalchemy import create_engine, text

from celery_highlander import Highlander, Leadership, current_leadership, singleton_task

logger = get_task_logger(__name__)
pages = Blueprint("shop", __name__)


def create_app() -> Flask:
    """Make the Flask app, with its engine, Celery and the plugin among its extensions."""
    flask = Flask(__name__)
    flask.config["DATABASE_URL"] = os.environ.get("SHOP_DATABASE_URL", "postgresql+psycopg2://shop@localhost/shop")
    flask.config["CELERY"] = {
        "broker_url": os.environ.get("SHOP_BROKER_URL", "redis://localhost:6379/0"),
        "broker_connection_retry_on_startup": True,
        "task_routes": {"example_project.flask_shop.enter": {"queue": "highlander"}},
        "beat_schedule": {
            "close-the-books": {
                "task": "example_project.flask_shop.close_the_books",
                "schedule": float(os.environ.get("SHOP_BEAT_SECONDS", "30")),
            }
        },
        "highlander_beat": True,
        **json.loads(os.environ.get("SHOP_SETTINGS", "{}")),  # any other Celery settings, as one JSON object
    }
    engine = create_engine(flask.config["DATABASE_URL"])  # with Flask-SQLAlchemy: db.engine, within app_context()
    flask.extensions["engine"] = engine
    celery_app = init_celery(flask)
    highlander = Highlander(celery_app, engine=engine)  # its URL and connect arguments, never its pool
    highlander.process("example_project.flask_shop:price_feed", name="price-feed")
    flask.extensions["highlander"] = highlander
    flask.register_blueprint(pages)
    return flask


def init_celery(flask: Flask) -> Celery:
    """Make the Celery app as Flask's documentation has it: tasks run within the Flask app's context."""

    class FlaskTask(Task):
        def __call__(self, *args: object, **kwargs: object) -> object:
            with flask.app_context():
                return self.run(*args, **kwargs)

    celery_app = Celery("flask_shop", task_cls=FlaskTask)
    celery_app.config_from_object(flask.config["CELERY"])
    celery_app.set_default()
    flask.extensions["celery"] = celery_app
    return celery_app


# -- tasks -------------------------------------------------------------------------------------------------------------


# Consumed by one worker at a time: the configuration routes it to the queue `highlander`.
@shared_task(acks_late=True, reject_on_worker_lost=True)
def enter(payment: int, cents: int) -> None:
    """Enter a payment, in one transaction with the check that this term still leads."""
    leadership = current_leadership()
    with current_app.extensions["engine"].begin() as connection:
        leadership.fence(connection)  # a stale leader's write fails here
        connection.execute(
            text("insert into flask_payment (id, cents, token) values (:id, :cents, :token) on conflict do nothing"),
            {"id": payment, "cents": cents, "token": leadership.token},
        )
    logger.info("payment %d: %.2f", payment, cents / 100)


# One run at a time for each account.
@singleton_task(unique_on=["account"])
def sync_account(account: str) -> None:
    """Fetch the statements of an account."""
    logger.info("syncing %s for %s", account, current_app.name)


@shared_task
def close_the_books() -> None:
    """Sync every account that has a payment."""
    with current_app.extensions["engine"].connect() as connection:
        numbers = connection.execute(text("select distinct id % 3 from flask_payment order by 1")).scalars().all()
    for number in numbers:
        sync_account.delay(f"account-{number}")


def price_feed(leadership: Leadership) -> None:
    """Publish prices beside exactly one worker; a process is no task, so it asks for the context itself."""
    with flask_app.app_context():
        while not leadership.wait(1.0):
            logger.info("price of %s: %.2f", current_app.name, random.randint(1, 10_000) / 100)


@control_command()
def reload_flask_prices(state: object, **kwargs: object) -> dict[str, str]:  # noqa: ARG001  # as Celery calls it
    """Have the worker that the price feed runs beside load them anew."""
    logger.warning("prices loaded anew")
    return {"ok": "prices loaded anew"}


# -- pages -------------------------------------------------------------------------------------------------------------


@pages.cli.command("init-db")
def init_db() -> None:
    """Make the table: `flask --app example_project.flask_shop shop init-db`."""
    with current_app.extensions["engine"].begin() as connection:
        connection.execute(
            text("create table if not exists flask_payment (id bigint primary key, cents integer, token bigint)")
        )


@pages.post("/pay/<int:payment>")
def pay(payment: int) -> Any:
    """Have the ledger's leader enter a payment."""
    enter.delay(payment, 1999)
    return jsonify(payment=payment)


@pages.post("/sync/<account>")
def sync(account: str) -> Any:
    """Sync an account."""
    sync_account.delay(account)
    return jsonify(account=account)


@pages.post("/prices/reload")
def reload_prices() -> Any:
    """Tell the one worker that the price feed runs beside, and no other."""
    node = current_app.extensions["highlander"].whereis("price-feed")
    if node is None:
        return jsonify(node=None), 503
    control = current_app.extensions["celery"].control
    replies = control.broadcast("reload_flask_prices", destination=[node], reply=True, timeout=5.0, limit=1)
    return jsonify(node=node, replies=replies)


flask_app = create_app()
celery = flask_app.extensions["celery"]  # what `celery -A` finds: `app` would be taken first
