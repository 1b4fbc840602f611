"""Two simple ways to have one leader, for comparison: `python -m benchmarks.naive poll|ttl URL TRACE` is one node.

`poll`: a session advisory lock, tried for at every poll, nobody is woken. `ttl`: a row with an expiry time, as in a
lock with a time to live; a leader that ends in an orderly way gives it back. Neither guards the work of a dead leader.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from typing import Any

import psycopg2

from celery_highlander.clock import boot_time

POLL_INTERVAL = 0.5
RENEW_INTERVAL = 1.0
TTL = 6.0
TABLE = "create table if not exists naive_lease (id int primary key, owner int, expires_at timestamptz not null)"

_ACQUIRE = {
    "poll": "select pg_try_advisory_lock(4711) and %(pid)s > 0 and %(ttl)s > 0",
    "ttl": """insert into naive_lease values (1, %(pid)s, clock_timestamp() + %(ttl)s * interval '1 s')
        on conflict (id) do update set owner = excluded.owner, expires_at = excluded.expires_at
        where naive_lease.expires_at < clock_timestamp() or naive_lease.owner = excluded.owner returning true""",
}


def _ask(cursor: Any, mode: str) -> bool:
    cursor.execute(_ACQUIRE[mode], {"pid": os.getpid(), "ttl": TTL})
    row = cursor.fetchone()
    return bool(row and row[0])


def main(mode: str, url: str, trace: str) -> None:
    """Try to lead, and lead until killed."""
    descriptor = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    connection = psycopg2.connect(url)
    connection.autocommit = True
    cursor = connection.cursor()

    def leave(number: int, frame: Any) -> None:  # noqa: ARG001  # a signal handler
        if mode == "ttl":
            cursor.execute("delete from naive_lease where owner = %s", (os.getpid(),))
        connection.close()
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)
    with contextlib.suppress(psycopg2.Error):
        cursor.execute(TABLE)
    os.write(descriptor, f"{boot_time():.6f} up - {os.getpid()}\n".encode())
    while not _ask(cursor, mode):
        time.sleep(POLL_INTERVAL * (1 + random.random() / 2))
    os.write(descriptor, f"{boot_time():.6f} start_work naive {os.getpid()}\n".encode())
    while True:
        time.sleep(RENEW_INTERVAL)
        if mode == "ttl":
            _ask(cursor, mode)


if __name__ == "__main__":
    main(*sys.argv[1:])
