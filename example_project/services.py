"""A PostgreSQL and a broker for trying things out: `python -m example_project.services [FILE]`, until Ctrl-C.

They listen on the loopback, on free ports, below a temporary directory; FILE (`shop.env`) gets what tells the shop
where they are, for `source shop.env`. Redis where `redis-server` is installed, else files.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shlex
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from tests.arena.servers import FilesystemBroker, Postgres, Redis


def main(path: Path) -> None:
    """Start both, write the file, wait for SIGINT or SIGTERM, and leave nothing behind."""
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    with contextlib.ExitStack() as exits:
        directory = Path(tempfile.mkdtemp(prefix="highlander-shop-"))
        directory.chmod(0o755)  # PostgreSQL does not run as root
        exits.callback(shutil.rmtree, directory, ignore_errors=True)
        tempfile.tempdir = str(directory)
        postgres = exits.enter_context(Postgres(fresh=True))
        database = postgres.create_database("shop")
        settings: dict[str, Any] = {}
        broker = ""
        if Redis.available() is None and importlib.util.find_spec("redis") is not None:
            broker = exits.enter_context(Redis()).url()
        else:
            settings = FilesystemBroker(directory / "broker").conf()
            broker = settings["broker_url"]
        values = {
            "SHOP_DATABASE_URL": database.url(),
            "SHOP_BROKER_URL": broker,
            "SHOP_SETTINGS": json.dumps(settings),
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        }
        path.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items()))
        exits.callback(path.unlink, missing_ok=True)
        print(f"PostgreSQL and a broker are up; `source {path}` in other terminals. Ctrl-C ends them.", flush=True)
        told.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "shop.env"))
