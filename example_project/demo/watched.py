"""Loaded by the demonstration's workers beside the shop: its work writes journals, from which the referee judges."""

from __future__ import annotations

import os
import time

from celery_highlander import current_leadership
from example_project import shop
from tests.arena.journal import Journal

QUEUE, PROCESS = "highlander", "price_feed"
JOURNALS = os.environ.get("SHOP_JOURNALS", ".")
PAYMENT_SECONDS = 0.01

_journals: dict[tuple[int, str], Journal] = {}


def journal_of(singleton: str) -> Journal:
    """Return this process' journal."""
    key = (os.getpid(), singleton)
    if key not in _journals:
        _journals[key] = Journal.open(JOURNALS, singleton)
    return _journals[key]


def enter(payment: int, cents: int) -> None:  # noqa: ARG001  # the shop's signature
    """Note that a payment is being entered, by which worker and in which term; it takes a while."""
    with journal_of(QUEUE).task(QUEUE, os.getppid(), current_leadership().token, str(payment)):
        time.sleep(PAYMENT_SECONDS)


def publish(cents: int) -> None:  # noqa: ARG001  # the shop's signature
    """Note that a price is published, by which process and in which term."""
    journal_of(PROCESS).write(PROCESS, os.getpid(), current_leadership().token, "beat")


shop.enter = enter
shop.publish = publish
