"""The shop's tasks, and its price feed."""

from __future__ import annotations

import random

from celery import shared_task
from celery.utils.log import get_task_logger
from celery.worker.control import control_command
from django.db import transaction

from celery_highlander import Leadership, current_leadership, singleton_task
from celery_highlander.contrib.django import fence

logger = get_task_logger(__name__)


# Consumed by one worker at a time: the settings route it to the queue `highlander`.
@shared_task(acks_late=True, reject_on_worker_lost=True)
def enter(payment: int, cents: int) -> None:
    """Enter a payment, in one transaction with the check that this term still leads."""
    from example_project.django_shop.models import Payment  # noqa: PLC0415  # the settings have to be ready

    leadership = current_leadership()
    with transaction.atomic():
        fence(leadership)  # over Django's connection: a stale leader's write fails here
        Payment.objects.get_or_create(pk=payment, defaults={"cents": cents, "token": leadership.token})
    logger.info("payment %d: %.2f", payment, cents / 100)


# One run at a time for each account.
@singleton_task(unique_on=["account"])
def sync_account(account: str) -> None:
    """Fetch the statements of an account."""
    logger.info("syncing %s", account)


# An entry of django-celery-beat, which a migration has added.
@shared_task
def close_the_books() -> None:
    """Sync every account that has a payment."""
    from example_project.django_shop.models import Payment  # noqa: PLC0415  # the settings have to be ready

    for number in sorted({payment % 3 for payment in Payment.objects.values_list("pk", flat=True)}):
        sync_account.delay(f"account-{number}")


def price_feed(leadership: Leadership) -> None:
    """Publish prices beside exactly one worker."""
    while not leadership.wait(1.0):
        logger.info("price: %.2f", random.randint(1, 10_000) / 100)


@control_command()
def reload_prices(state: object, **kwargs: object) -> dict[str, str]:  # noqa: ARG001  # as Celery calls it
    """Have the worker that the price feed runs beside load them anew."""
    logger.warning("prices loaded anew")
    return {"ok": "prices loaded anew"}
