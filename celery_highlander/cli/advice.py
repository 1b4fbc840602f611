"""What `doctor` says of Celery's own settings: those that decide what a failover costs; asks no broker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from kombu.utils.url import parse_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from celery import Celery

REDIS_VISIBILITY_TIMEOUT = 3600
"""Seconds that kombu's Redis transport waits before it gives an unacknowledged message back, where nothing is set."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was found, and what to do about it where something is wrong."""

    check: str
    level: Literal["ok", "warning", "error"]
    message: str
    cure: str = ""


def on_celery(app: Celery, queues: Sequence[str]) -> Iterator[Finding]:
    """Judge what matters to the singleton queues `queues`; nothing where there are none."""
    if not queues:
        return
    yield _on_queues(app, queues)
    yield _on_acknowledgement(app)
    transport = transport_of(app)
    if transport in ("redis", "rediss", "sentinel"):
        yield _on_redis(app)
    elif transport in ("amqp", "amqps", "pyamqp"):
        yield _on_amqp(app)
    elif transport in ("memory", "filesystem"):
        yield _on_toys(transport)
    yield _on_pool(app)


def transport_of(app: Celery) -> str:
    """Return the name of the broker's transport, such as `redis`."""
    url = app.conf.broker_read_url or app.conf.broker_url or "amqp"
    first = url[0] if isinstance(url, (list, tuple)) else str(url).split(";", 1)[0]
    return str(parse_url(first)["transport"] if "://" in first else first).partition("+")[0]


def _on_queues(app: Celery, queues: Sequence[str]) -> Finding:
    shown = ", ".join(map(repr, queues))
    if app.conf.task_default_queue in queues:
        return Finding(
            "queues",
            "warning",
            f"the default queue {app.conf.task_default_queue!r} is a singleton queue: every task that names no other "
            "queue runs on the leader only.",
            "Set task_default_queue to another queue, unless that is what you want.",
        )
    return Finding(
        "queues", "ok", f"only leaders consume {shown}: leave them out of `worker -Q`, and send tasks with queue=…"
    )


def _on_acknowledgement(app: Celery) -> Finding:
    early = sorted(
        name
        for name, task in app.tasks.items()
        if not name.startswith("celery.")
        and not (app.conf.task_acks_late if task.acks_late is None else task.acks_late)
    )
    if app.conf.task_acks_late and not early:
        return Finding(
            "acknowledgement", "ok", "late: a task that is killed with its leader runs again on the next one"
        )
    if not early and any(not name.startswith("celery.") for name in app.tasks):
        return Finding("acknowledgement", "ok", "every task is acknowledged late (task_acks_late itself is off)")
    some = f" ({', '.join(early[:3])}{', …' if len(early) > 3 else ''})" if early else ""  # noqa: PLR2004  # a sample
    return Finding(
        "acknowledgement",
        "warning",
        f"tasks are acknowledged before they run{some}: the message of a task that is killed with its leader is lost.",
        "Give the tasks of singleton queues acks_late=True (or set task_acks_late), and let them bear running twice.",
    )


def _on_redis(app: Celery) -> Finding:
    options: dict[str, Any] = app.conf.broker_transport_options or {}
    timeout = float(options.get("visibility_timeout", REDIS_VISIBILITY_TIMEOUT))
    return Finding(
        "redis",
        "ok",
        "a new leader gives back at once what the last one left unacknowledged in singleton queues; messages of "
        f"other queues come back after the visibility time-out of {timeout:g} s, and what takes longer runs twice",
    )


def _on_amqp(app: Celery) -> Finding:
    if app.conf.worker_cancel_long_running_tasks_on_connection_loss:
        return Finding(
            "amqp", "ok", "running tasks are cancelled when the broker is lost, before it delivers them again"
        )
    return Finding(
        "amqp",
        "warning",
        "after a lost broker connection RabbitMQ delivers late-acknowledged tasks again while they still run, to the "
        "same leader too.",
        "Set worker_cancel_long_running_tasks_on_connection_loss = True.",
    )


def _on_toys(transport: str) -> Finding:
    reach = "one process" if transport == "memory" else "one machine, and loses messages of a killed worker"
    return Finding(
        "broker",
        "warning",
        f"the broker {transport}:// reaches no further than {reach}.",
        "Use RabbitMQ or Redis where it matters.",
    )


def _on_pool(app: Celery) -> Finding:
    pool = str(app.conf.worker_pool or "prefork")
    if pool in ("prefork", "processes"):
        return Finding("pool", "ok", "prefork: a task that does not stop in time is killed by itself")
    return Finding(
        "pool",
        "warning",
        f"the pool {pool!r} cannot kill a single task: a worker whose task does not stop in time is killed as a whole.",
        "Use the prefork pool for singleton queues, or keep their tasks shorter than highlander_drain_timeout.",
    )
