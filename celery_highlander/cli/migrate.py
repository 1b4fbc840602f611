"""`migrate`: brings the tables to this release's version, or prints the SQL for somebody who may."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from sqlalchemy.exc import DBAPIError

from celery_highlander.errors import DatabaseUnavailableError, SchemaError
from celery_highlander.store import connecting, migrations

if TYPE_CHECKING:
    from celery_highlander.store.connecting import Target


def sql(target: Target, schema: str) -> str:
    """Return the SQL from the present version on; from nothing on where the database cannot be asked."""
    try:
        connection = connecting.open_connection(target, "highlander-migrate")
    except DatabaseUnavailableError:
        return migrations.script(schema)
    try:
        since = migrations.version_of(connection, schema)
    except SchemaError:
        since = 0
    finally:
        connection.close()
    if since >= migrations.VERSION:
        return f"-- {migrations.prefix(schema)}* are of version {since} already: there is nothing to do.\n"
    return migrations.script(schema, since)


def run(target: Target, schema: str) -> dict[str, Any]:
    """Migrate; return what was done.

    Raises:
        SchemaError: the role may not do that; the hint ends with the SQL for one that may.
    """
    connection = connecting.open_connection(target, "highlander-migrate")
    try:
        with connecting.patience(connection):
            connecting.check_server(connection)
            since = migrations.migrate(connection, schema)
    except SchemaError as error:
        script = migrations.script(schema)
        raise SchemaError(error.message, f"Let a role that may run:\n\n{script}\nand then: {_grants(schema)}") from None
    except DBAPIError as error:
        raise connecting.unanswered(error, target) from None
    finally:
        connection.close()
    return {"schema": schema, "from": since, "to": max(since, migrations.VERSION)}


def _grants(schema: str) -> str:
    return migrations.grants(schema, "<role>")


def write(done: dict[str, Any]) -> None:
    """Print what was done."""
    where = f" in the schema {done['schema']!r}" if done["schema"] else ""
    if done["from"] == done["to"]:
        click.echo(f"The tables{where} are of version {done['to']} already: nothing to do.")
    elif done["from"]:
        click.echo(f"Brought the tables{where} from version {done['from']} to version {done['to']}.")
    else:
        click.echo(f"Created the tables{where}, version {done['to']}.")
