"""The app of the measured beats: so many entries, all alike, and a note of each publication.

`python -m benchmarks.beat_shop SCHEDULER FILE` runs a beat. It imports nothing of the package, so that the other
schedulers do not pay for it; `celery beat` imports the commands of whatever is installed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import after_task_publish, before_task_publish

app = Celery("shop")
app.conf.update(json.loads(os.environ.get("HIGHLANDER_ARENA_CONF", "{}")))
app.conf.task_ignore_result = True
QUEUE = "ticks"
FIRST = "first"
"""The entry that is due at once, and not again: it shows that the beat ticks, and has its connection to the broker."""


def _entries(count: int, interval: float, start: float, spread: bool) -> dict[str, dict[str, Any]]:
    """Entries that are due first at `start`, or spread over the interval that begins then, whichever the scheduler."""

    def entry(name: str, seconds: float, first: float) -> dict[str, Any]:
        last = datetime.fromtimestamp(first, timezone.utc) - timedelta(seconds=seconds)
        options = {"queue": QUEUE}
        return {"task": "run", "schedule": seconds, "args": (name,), "options": options, "last_run_at": last}

    found = {
        str(number): entry(str(number), interval, start + (interval * number / count if spread else 0.0))
        for number in range(count)
    }
    return {**found, FIRST: entry(FIRST, 86400.0, time.time() - 1.0)}


@app.task(name="run")
def run(entry: str) -> None:
    """Never run."""


ENTRIES: dict[str, Any] = json.loads(os.environ.get("HIGHLANDER_BENCHMARK_ENTRIES", "{}"))
if ENTRIES:
    app.conf.beat_schedule = _entries(**ENTRIES)

if os.environ.get("HIGHLANDER_BENCHMARK_NOTES"):
    _file = os.open(
        Path(os.environ["HIGHLANDER_BENCHMARK_NOTES"]) / f"published.{os.getpid()}",
        os.O_WRONLY | os.O_APPEND | os.O_CREAT,
        0o644,
    )
    _began = [0.0]

    @before_task_publish.connect(weak=False)
    def _note_begin(**_: Any) -> None:
        _began[0] = time.time()

    @after_task_publish.connect(weak=False)
    def _note_end(body: Any, headers: dict[str, Any], **_: Any) -> None:
        now = time.time()
        due = (headers.get("highlander_tick") or {}).get("due_at", "-")
        os.write(_file, f"{body[0][0]} {_began[0]:.6f} {now:.6f} {due}\n".encode())


if __name__ == "__main__":
    app.Beat(scheduler=sys.argv[1], schedule=sys.argv[2], loglevel="WARNING", quiet=True).run()
