"""A throw-away PostgreSQL for the tutorial, as `make demo` has one: `python docs/tutorial/postgres.py`.

It runs until it is told to end (Ctrl-C, kill), listens on 127.0.0.1 only, trusts everybody there, and keeps nothing.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.arena.servers import Postgres, ServerError

PORT = 54329


def main() -> int:
    """Run the server; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=PORT, help=f"default: {PORT}")
    options = parser.parse_args()
    if reason := Postgres.available():
        sys.stderr.write(f"error: {reason}\n")
        return 1
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # of children, too: `sigwait` is the one that hears them
    server = Postgres()
    server.port = options.port
    try:
        server.start()
        sys.stdout.write(f"PostgreSQL {server.version} is ready: {server.url()}\n")
        sys.stdout.flush()
        signal.sigwait(signals)
    except ServerError as error:
        sys.stderr.write(f"error: {error}\nIs the port {options.port} taken? Choose another one with --port.\n")
        return 1
    finally:
        server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
