"""The desk of a keeper for the beat of its node, in this process."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from celery_highlander.election.lease import Timing
from celery_highlander.keeper.beat_desk import BeatDesk
from celery_highlander.keeper.children import LEDGER_VARIABLE, ledger_address, new_address
from celery_highlander.keeper.session import SessionPlan
from celery_highlander.store.connecting import Target
from celery_highlander.store.terms import Identity

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest


def plan(url: str) -> SessionPlan:
    """What a keeper would know that connects to `url`."""
    return SessionPlan(
        lambda: Target(url, {}),
        {},
        "shop",
        "shop",
        "",
        migrate=False,
        timing=Timing(),
        who=Identity("n1", "w1@arena", 1),
        priority=0,
        eligible=True,
    )


@contextlib.contextmanager
def beat_desk(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Open a desk, and have the beats of this process find it; gives its address."""
    address = new_address()
    monkeypatch.setenv(LEDGER_VARIABLE, ledger_address(address))
    desk = BeatDesk(address, plan(url))
    yield ledger_address(address)
    desk.close()
