"""The shop behind Flask: an app factory, its engine, and a view that talks to the leader of the price feed.

celery -A example_project.flask_shop worker -X highlander
flask --app example_project.flask_shop run
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.utils.log import get_task_logger
from celery.worker.control import control_command
from flask import Flask, jsonify
from sqlalchemy import create_engine, text

from celery_highlander import Highlander, Leadership
from celery_highlander.worker.leadership import current_leadership

logger = get_task_logger(__name__)


def create_app() -> Flask:
    """Make the Flask app, with Celery and the plugin among its extensions."""
    flask = Flask(__name__)
    url = os.environ.get("SHOP_DATABASE_URL", "postgresql+psycopg2://shop@localhost/shop")
    engine = create_engine(url)  # with Flask-SQLAlchemy: db.engine, within flask.app_context()
    broker = os.environ.get("SHOP_BROKER_URL", "redis://localhost:6379/0")
    made = Celery("flask_shop", broker=broker, set_as_current=False)
    made.conf.broker_connection_retry_on_startup = True
    made.conf.task_routes = {"enter": {"queue": "highlander"}}
    highlander = Highlander(made, engine=engine)  # its URL and connect arguments, never its pool
    highlander.process("example_project.flask_shop:price_feed", name="price-feed")

    @made.task(name="enter", acks_late=True, reject_on_worker_lost=True)
    def enter(payment: int) -> None:
        """Enter a payment, in one transaction with the check that this term still leads."""
        with engine.begin() as connection:
            current_leadership().fence(connection)
            connection.execute(text("insert into flask_payment (id) values (:id)"), {"id": payment})

    @flask.post("/pay/<int:payment>")
    def pay(payment: int) -> Any:
        enter.delay(payment)
        return jsonify(payment=payment)

    @flask.post("/prices/reload")
    def reload() -> Any:
        node = highlander.whereis("price-feed")
        if node is None:
            return jsonify(node=None), 503
        replies = made.control.broadcast("reload_flask_prices", destination=[node], reply=True, timeout=2.0)
        return jsonify(node=node, replies=replies)

    flask.extensions["celery"] = made
    return flask


def price_feed(leadership: Leadership) -> None:
    """Publish prices beside exactly one worker."""
    while not leadership.wait(0.5):
        logger.info("price")


@control_command()
def reload_flask_prices(state: object, **kwargs: object) -> dict[str, str]:  # noqa: ARG001  # as Celery calls it
    """Have the worker that the price feed runs beside load them anew."""
    return {"ok": "prices loaded anew"}


celery = create_app().extensions["celery"]
