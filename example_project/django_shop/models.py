"""The ledger."""

from __future__ import annotations

from django.db import models


class Payment(models.Model):
    """A payment, with the token of the term in which it was entered."""

    cents = models.IntegerField()
    token = models.BigIntegerField()
