"""`health`: asks a worker of this host over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import click

from celery_highlander.cli import output
from celery_highlander.errors import ConfigurationError, WorkerUnavailableError
from celery_highlander.worker.http import parse_address


def url_of(address: str) -> str:
    """Return where a worker with that `highlander_http_address` answers.

    Raises:
        ConfigurationError: it answers nowhere.
    """
    if not address:
        raise ConfigurationError(
            "highlander_http_address is not set: workers answer nobody.",
            "Set it, for instance to '127.0.0.1:9808', or name a worker with --url.",
        )
    host, port = parse_address(address)
    if host in ("", "0.0.0.0", "::"):  # noqa: S104  # as the worker was told
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def ask(url: str, timeout: float) -> dict[str, Any]:
    """Return what the worker at `url` says of its health.

    Raises:
        WorkerUnavailableError: nobody answers there, or somebody else.
        ConfigurationError: this is no such URL.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"{url!r} is not a URL like http://127.0.0.1:9808.", "")
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/healthz", timeout=timeout) as answer:  # noqa: S310  # checked
            body = answer.read()
    except urllib.error.HTTPError as error:
        body = error.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise WorkerUnavailableError(
            f"no worker answers at {url}: {reason}.", "Does it run, and listen there (highlander_http_address)?"
        ) from None
    try:
        found = json.loads(body)
        return {**found, "ok": bool(found["ok"]), "problems": [str(problem) for problem in found["problems"]]}
    except (ValueError, KeyError, TypeError):
        raise WorkerUnavailableError(
            f"what answers at {url} is no worker with celery-highlander.", "Is it the right port?"
        ) from None


def write(found: dict[str, Any]) -> None:
    """Print it in a few lines."""
    leads = ", ".join(found.get("leads", ())) or "nothing"
    session = "its lock session is open" if found.get("connected") else "no lock session"
    tone = "ok" if found["ok"] else "error"
    output.write_toned(tone, "well" if found["ok"] else "not well", f": leads {leads}; {session}")
    for problem in found["problems"]:
        click.echo(f"  {problem}")
