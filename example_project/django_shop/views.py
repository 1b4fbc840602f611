"""Two views: one sends a singleton task when its transaction commits, one talks to the leader of the price feed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import transaction
from django.http import HttpRequest, JsonResponse

from celery_highlander import Highlander
from example_project.django_shop.celery import app
from example_project.django_shop.tasks import sync_account

if TYPE_CHECKING:
    from django.http import HttpResponse


def sync(request: HttpRequest, account: str) -> HttpResponse:  # noqa: ARG001  # as Django calls it
    """Sync an account, once this transaction has committed."""
    with transaction.atomic():
        sync_account.delay_on_commit(account)
    return JsonResponse({"account": account})


def reload_prices(request: HttpRequest) -> HttpResponse:  # noqa: ARG001  # as Django calls it
    """Tell the one worker that the price feed runs beside."""
    node = Highlander(app).whereis("price-feed")
    if node is None:
        return JsonResponse({"node": None}, status=503)
    replies = app.control.broadcast("reload_prices", destination=[node], reply=True, timeout=2.0)
    return JsonResponse({"node": node, "replies": replies})
