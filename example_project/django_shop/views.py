"""Views that send tasks when their transaction commits, and one that talks to the leader of the price feed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_POST

from example_project.django_shop.celery import app, highlander
from example_project.django_shop.tasks import enter, sync_account

if TYPE_CHECKING:
    from django.http import HttpResponse


@require_POST
def pay(request: HttpRequest, payment: int) -> HttpResponse:  # noqa: ARG001  # as Django calls it
    """Have the ledger's leader enter a payment, once this transaction has committed."""
    with transaction.atomic():
        enter.delay_on_commit(payment, 1999)
    return JsonResponse({"payment": payment})


@require_POST
def sync(request: HttpRequest, account: str) -> HttpResponse:  # noqa: ARG001  # as Django calls it
    """Sync an account, once this transaction has committed."""
    with transaction.atomic():
        sync_account.delay_on_commit(account)
    return JsonResponse({"account": account})


@require_POST
def reload_prices(request: HttpRequest) -> HttpResponse:  # noqa: ARG001  # as Django calls it
    """Tell the one worker that the price feed runs beside, and no other."""
    node = highlander.whereis("price-feed")
    if node is None:
        return JsonResponse({"node": None}, status=503)
    replies = app.control.broadcast("reload_prices", destination=[node], reply=True, timeout=5.0, limit=1)
    return JsonResponse({"node": node, "replies": replies})
