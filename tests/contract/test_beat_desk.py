"""A beat and its keeper's desk for the tick ledger, in what is not the ledger's own: errors, hang-ups, strangers."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import psycopg2
import pytest

from celery_highlander.beat.connection import LedgerConnection
from celery_highlander.election.keys import lock_key
from celery_highlander.errors import DatabaseUnavailableError, SchemaError
from celery_highlander.keeper.children import LEDGER_VARIABLE, raw_address
from tests.arena.waiting import wait_until
from tests.contract.desks import beat_desk
from tests.contract.nodes import Node

if TYPE_CHECKING:
    from tests.arena.servers import Database

pytestmark = pytest.mark.postgres

LIMIT = 20.0
NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
KEY = lock_key("shop", "ledger")
SESSIONS = "select pid from pg_stat_activity where application_name = 'highlander-beat shop'"


def test_ten_thousand_entries_are_loaded_together(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Node(url) as node, beat_desk(url, monkeypatch):
        beat = LedgerConnection(KEY, node.lead().token)
        names = [f"an entry with a name that is not short, number {number}" for number in range(10_000)]
        assert set(beat.load(dict.fromkeys(names, NOON))) == set(names)
        beat.close()


def test_its_connection_is_closed_when_the_beat_hangs_up(
    url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Node(url) as node, beat_desk(url, monkeypatch):
        beat = LedgerConnection(KEY, node.lead().token)
        beat.load({"report": NOON})
        assert len(database.execute(SESSIONS)) == 1
        beat.close()
        wait_until(lambda: not database.execute(SESSIONS), LIMIT, "the connection to be closed")


def test_a_beat_without_its_tables_is_told_so(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with beat_desk(url, monkeypatch), pytest.raises(SchemaError, match="highlander"):
        LedgerConnection(KEY, 1).load({"report": NOON})


def test_what_the_database_says_is_told_without_a_password(
    url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.execute("create role clerk login password 's3cret-word' connection limit 0")
    other = url.replace("postgres@", "clerk:s3cret-word@")
    try:
        with beat_desk(other, monkeypatch), pytest.raises(DatabaseUnavailableError, match="clerk") as caught:
            LedgerConnection(KEY, 1).load({"report": NOON})
        assert "s3cret-word" not in str(caught.value)
    finally:
        database.execute("drop role clerk")


def test_without_a_keeper_there_is_no_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LEDGER_VARIABLE, raising=False)
    with pytest.raises(DatabaseUnavailableError, match="this process has none"):
        LedgerConnection(KEY, 1).open_ticks()


def test_a_wait_for_a_locked_row_can_be_given_up(url: str, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        Node(url) as node,
        beat_desk(url, monkeypatch),
        contextlib.closing(psycopg2.connect(database.url().replace("+psycopg2", ""))) as other,
    ):
        beat = LedgerConnection(KEY, node.lead().token)
        beat.load({"report": NOON})
        other.cursor().execute("select * from highlander_entry for update")
        begun = time.monotonic()
        threading.Timer(0.2, beat.abort).start()
        with pytest.raises(DatabaseUnavailableError, match="does not answer"):
            beat.load({"report": NOON})
        assert time.monotonic() - begun < LIMIT
        other.rollback()


def test_one_that_speaks_nonsense_is_hung_up_on_and_others_go_on(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Node(url) as node, beat_desk(url, monkeypatch) as address:
        beat = LedgerConnection(KEY, node.lead().token)
        for line in (b"nonsense\n", b"[]\n", b'{"ask": "drop"}\n', b'{"ask": ["load"]}\n', b"{" * 100_000 + b"\n"):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(LIMIT)
                sock.connect(raw_address(address))
                sock.sendall(line)
                assert sock.recv(100) == b""
        assert set(beat.load({"report": NOON})) == {"report"}
        beat.close()


def test_a_question_of_the_wrong_shape_is_answered_with_an_error(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Node(url) as node, beat_desk(url, monkeypatch):
        beat = LedgerConnection(KEY, node.lead().token)
        with pytest.raises(Exception, match="KeyError"):
            beat._ask("claim")
        assert set(beat.load({"report": NOON})) == {"report"}
        beat.close()


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="needs root, to be somebody else (setpriv of util-linux)",
)
def test_another_user_is_not_answered(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.settimeout(20); s.connect(chr(0) + sys.argv[1]);"
        " s.sendall(b'x'); print(s.recv(1) or 'nothing')"
    )
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable
    with beat_desk(url, monkeypatch) as address:
        argv = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", python, "-I", "-c", ask]
        done = subprocess.run([*argv, address[1:]], capture_output=True, text=True, timeout=60, check=False, cwd="/")
    assert done.stdout.strip() == "nothing" or "Error" in done.stderr, done
