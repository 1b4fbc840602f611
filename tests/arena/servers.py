"""The one place to import servers from; it starts none."""

from __future__ import annotations

from tests.arena.brokers import FilesystemBroker, RabbitMQ, Redis
from tests.arena.lifecycle import Server
from tests.arena.pooler import PgBouncer
from tests.arena.postgres import Database, Postgres, Standby
from tests.arena.postgres_binaries import Installation, installations
from tests.arena.processes import ServerError, free_port

__all__ = [
    "Database",
    "FilesystemBroker",
    "Installation",
    "PgBouncer",
    "Postgres",
    "RabbitMQ",
    "Redis",
    "Server",
    "ServerError",
    "Standby",
    "free_port",
    "installations",
]
