"""Finds messages that are recorded as waiting, and are gone: purged, lost, or never sent by a process that died.

A row is freed on proof alone: the message has expired; or its result says that it has ended; or, in two looks a while
apart, it was neither in its queue, nor delivered and unacknowledged, nor known to a worker, nor running. Where a broker
does not tell (RabbitMQ tells nothing of the messages in a queue that is not empty) the row stays until it does.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from celery.backends.base import DisabledBackend
from celery.states import READY_STATES

from celery_highlander.errors import HighlanderError
from celery_highlander.store import waiting as store
from celery_highlander.tasks.waiting import connected, let_go
from celery_highlander.worker.highlander import Highlander

if TYPE_CHECKING:
    from celery import Celery

    from celery_highlander.store.waiting import Row

logger = logging.getLogger("celery_highlander")

SWEEP_INTERVAL = 60.0
"""Seconds between two looks for a message, by whichever node."""

LOOKS = 2
"""Looks in a row in which a message was nowhere, before it counts as gone."""

_REPLY_TIMEOUT = 2.0  # seconds for the workers to say whether they know a task
_MOST_MESSAGES = 20_000  # of a queue that is looked through


def sweep(app: Celery, age: float = SWEEP_INTERVAL) -> list[Row]:
    """Look for the messages that nobody has looked for within `age` seconds; return those that were gone.

    Raises:
        HighlanderError: the database cannot be used.
    """
    namespace = Highlander.installed_in(app).known_settings().namespace
    gone = []
    with connected(app) as (connection, schema):
        rows = store.stale(connection, schema, namespace, age)
        if not rows:
            return []
        known = _known_to_workers(app, [row.task_id for row in rows])
        for row in rows:
            proof = "it has expired" if row.expired else _ended(app, row.task_id)
            if not proof:
                missing = row.task_id not in known and _is_absent(app, row)
                store.missed(connection, schema, row, missing=missing)
                proof = "it is nowhere" if missing and row.missed + 1 >= LOOKS else ""
            if proof and store.forget_lost(connection, schema, row):
                logger.warning(
                    "the message %s of %s is gone (%s): another one may be sent",
                    row.task_id,
                    row.name,
                    proof,
                    extra={"action": "message_gone"},
                )
                gone.append(row)
    return gone


def _ended(app: Celery, task_id: str) -> str:
    if isinstance(app.backend, DisabledBackend):
        return ""
    try:
        state = app.AsyncResult(task_id).state
    except Exception as error:  # noqa: BLE001  # of whatever backend: then it proves nothing
        logger.debug("no state of %s: %s", task_id, error)
        return ""
    return f"it ended as {state}" if state in READY_STATES else ""


def _known_to_workers(app: Celery, task_ids: list[str]) -> set[str]:
    replies: Any = app.control.inspect(timeout=_REPLY_TIMEOUT).query_task(*task_ids) or {}
    return {task_id for reply in replies.values() if isinstance(reply, dict) for task_id in reply}


def _is_absent(app: Celery, row: Row) -> bool:
    """Whether the broker says that it does not have the message; False where it cannot be asked."""
    try:
        with app.connection_for_read() as connection:
            channel: Any = connection.default_channel
            if hasattr(channel, "unacked_key"):
                return _is_absent_in_redis(channel, row)
            return _is_empty(connection, channel, row.queue)
    except Exception as error:  # noqa: BLE001  # of whatever broker: then it proves nothing
        logger.debug("the broker does not tell of %s: %s", row.task_id, error)
        return False


def _is_absent_in_redis(channel: Any, row: Row) -> bool:
    if channel.global_keyprefix:
        return False  # kombu does not apply it to all that is needed here
    wanted = row.task_id.encode()
    client = channel.client
    for priority in channel.priority_steps:
        key = channel._q_for_pri(row.queue, priority)  # noqa: SLF001  # kombu has no public way to a queue's list
        if client.llen(key) > _MOST_MESSAGES or any(wanted in message for message in client.lrange(key, 0, -1)):
            return False
    unacknowledged = channel.unacked_key
    if client.hlen(unacknowledged) > _MOST_MESSAGES:
        return False
    return not any(wanted in message for message in client.hvals(unacknowledged))


def _is_empty(connection: Any, channel: Any, queue: str) -> bool:
    try:
        count: int = channel.queue_declare(queue=queue, passive=True).message_count
    except connection.channel_errors:
        return True  # there is no such queue
    return count == 0


class Sweeper:
    """Sweeps now and then, in a thread of a worker."""

    def __init__(self) -> None:
        self._stopped = threading.Event()

    def start(self, app: Celery) -> None:
        """Begin."""
        self._stopped.clear()
        threading.Thread(target=self._run, args=(app,), name="highlander-sweeper", daemon=True).start()

    def stop(self) -> None:
        """Sweep no more."""
        self._stopped.set()

    def _run(self, app: Celery) -> None:
        while not self._stopped.wait(SWEEP_INTERVAL):
            _sweep_once(app)


def _sweep_once(app: Celery) -> None:
    try:
        sweep(app)
    except HighlanderError as error:
        logger.debug("no sweep: %s", error)
    except Exception:  # of one that fails, the next one may not
        logger.exception("the sweep for lost messages failed")
    finally:
        let_go(app)
