"""More is due than can be sent: what is skipped is told of, all of it, and not with each tick."""

from __future__ import annotations

import logging
import re
import time
from typing import TYPE_CHECKING

import pytest
from celery import Celery

from celery_highlander import Highlander
from celery_highlander.beat.broker import open_for_publishing
from celery_highlander.beat.connection import LedgerConnection
from celery_highlander.beat.ledger import SAY_INTERVAL, LedgerScheduler
from celery_highlander.beat.publishing import Publishing
from celery_highlander.clock import boot_time
from celery_highlander.election.keys import lock_key
from celery_highlander.keeper.cell import LeaseCell, create
from celery_highlander.worker.leadership import Leadership, TermInfo
from tests.contract.desks import beat_desk
from tests.contract.nodes import Node

if TYPE_CHECKING:
    from tests.arena.servers import Database

pytestmark = pytest.mark.postgres

KEY = lock_key("shop", "ledger")
SECONDS = 1.5
SKIPPED = re.compile(r"beat: skipped (\d+) missed ticks of 'e\d'")


def test_skipped_ticks_are_told_of_in_few_words_and_none_is_left_out(
    url: str, database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = Celery("shop", broker="memory://")
    app.conf.highlander_url = url
    app.conf.beat_schedule = {f"e{number}": {"task": "run", "schedule": 0.0001} for number in range(5)}
    settings = Highlander(app).settings()
    cell = LeaseCell(create())
    cell.deadline = boot_time() + 600
    with Node(url) as node, beat_desk(url, monkeypatch), caplog.at_level(logging.WARNING):
        token = node.lead().token
        term = Leadership(TermInfo("ledger", token, time.time(), "shop", "", 0.5), cell)
        publishing = Publishing(term, lambda: open_for_publishing(app, 1.0))
        beat = LedgerScheduler(app, ledger=LedgerConnection(KEY, token), publishing=publishing, settings=settings)
        passes, end = 0, time.monotonic() + SECONDS
        while time.monotonic() < end:
            beat.tick()
            passes += 1
        beat.close()
    told = [int(found[1]) for record in caplog.records if (found := SKIPPED.search(record.getMessage()))]
    ((skipped,),) = database.execute("select sum(skipped_count)::int from highlander_entry")
    assert sum(told) == skipped > 0
    assert len(told) <= SECONDS / SAY_INTERVAL + 2 < passes
