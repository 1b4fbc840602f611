"""`python -m tests.arena.holders`: many threads of one process, which has a keeper of its own, hold keys one at a time.

Each run appends one line to a journal, in one write: key, when it began, when it ended (boot-time clock, ns). Runs of a
key must not overlap, whoever made them.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import threading
import time
from pathlib import Path

from celery import Celery

from celery_highlander import Highlander
from celery_highlander.election.keys import lock_key
from celery_highlander.errors import HighlanderError
from celery_highlander.keeper.run_table import Want
from celery_highlander.tasks.client import client_for
from tests.arena.journal import now_ns


def overlaps(directory: Path) -> list[tuple[str, int]]:
    """Return the keys whose runs overlapped, each with by how many nanoseconds."""
    runs: dict[str, list[tuple[int, int]]] = {}
    for path in directory.glob("holder.*"):
        for line in path.read_text().splitlines():
            key, began, ended = line.split()
            runs.setdefault(key, []).append((int(began), int(ended)))
    found = []
    for key, spans in runs.items():
        spans.sort()
        found += [(key, end - begin) for (_, end), (begin, _) in itertools.pairwise(spans) if begin < end]
    return found


def count(directory: Path) -> int:
    """Return how many runs there were."""
    return sum(len(path.read_text().splitlines()) for path in directory.glob("holder.*"))


def _hold(app: Celery, key: int, journal: int, wait: float) -> bool:
    namespace = Highlander(app).known_settings().namespace
    base = lock_key(namespace, f"task\x1fkey-{key}") >> 10 << 10
    name = f"{namespace}/key-{key}"
    want = Want(base, 1, f"key-{key}", "holders", str(key), wait, fenced=False, abort=True)
    try:
        with client_for(app).hold(want):
            began = now_ns()
            time.sleep(0.001)
            os.write(journal, f"{name} {began} {now_ns()}\n".encode())
    except HighlanderError:
        return False  # again
    return True


def main() -> int:
    """Hold each key once; ends when all were held."""
    options = argparse.ArgumentParser()
    options.add_argument("--url", required=True)
    options.add_argument("--namespace", default="shop")
    options.add_argument("--directory", type=Path, required=True)
    options.add_argument("--keys", type=int, required=True)
    options.add_argument("--threads", type=int, required=True)
    options.add_argument("--wait", type=float, default=0.5)
    given = options.parse_args()
    app = Celery("holders", broker="memory://")
    app.conf.update(highlander_url=given.url, highlander_namespace=given.namespace)
    Highlander(app)
    journal = os.open(given.directory / f"holder.{os.getpid()}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    left = list(range(given.keys)) if given.keys > 1 else [0] * given.threads
    random.Random(1).shuffle(left)  # the same in every process: they meet at the same keys

    def work() -> None:
        while True:
            try:
                key = left.pop()
            except IndexError:
                return
            while not _hold(app, key, journal, given.wait):
                pass

    client_for(app)
    threads = [threading.Thread(target=work) for _ in range(given.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
