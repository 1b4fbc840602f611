"""`python -m example_project.demo`: exit code 0 if every promise was kept, 1 if one was broken, 130 after Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from example_project.demo.play import SINGLETONS, Result, play
from example_project.demo.screen import PlainScreen, screen_for, table, wrapped
from example_project.demo.stage import Stage
from tests.arena.servers import ServerError
from tests.arena.waiting import WaitedInVainError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_LOST_WITHOUT_REDIS = (
    "Broker: plain files (filesystem://), because there is no Redis here. It needs no server, but what a worker has "
    "fetched and not finished is lost when that worker is killed; Redis and RabbitMQ give such messages to the next "
    "leader. So payments that are lost with a killed worker are counted, but they break no promise in this run."
)


_WITH_REDIS = (
    "Broker: a Redis of our own. A payment goes from the queue into the list of unacknowledged ones in one step, and "
    "the next leader finds it there: not one may be lost, whatever happens to the worker."
)


def introduce(stage: Stage, screen: PlainScreen) -> None:
    """Say what is about to be seen."""
    timing = stage.timing
    installation = stage.postgres.installation
    screen.closing(
        "There can be only one: celery-highlander keeps a queue and a process on one worker, and moves them.\n"
    )
    screen.closing(wrapped(f"Database: a PostgreSQL {installation.version} of our own, on port {stage.postgres.port}."))
    screen.closing(wrapped(_WITH_REDIS if stage.has_redis else _LOST_WITHOUT_REDIS))
    screen.closing(
        wrapped(
            f"Durations are shorter than the defaults, so that this takes a minute: lease "
            f"{timing['highlander_lease_duration']:g} s (default 6), heartbeat every "
            f"{timing['highlander_heartbeat_interval']:g} s (1), poll every "
            f"{timing['highlander_poll_interval']:g} s (0.5)."
        )
    )
    screen.closing(
        wrapped(
            "Measured from the journals that the shop's own work writes: a price every 2 ms, and each payment's "
            "beginning and end. Payments are sent all the time, 25 a second."
        )
    )


def judge(stage: Stage, results: list[Result]) -> tuple[str, bool]:
    """Return the closing text, and whether every promise was kept."""
    broken = [f"{result.title}: {what}" for result in results for what in result.broken]
    referee = stage.cluster.referee()
    try:
        referee.verdict(*SINGLETONS)
    except AssertionError as error:
        broken.append(str(error))
    twice = sum(len(referee.duplicates(name)) for name in SINGLETONS)
    lines = [
        "",
        table(results),
        "",
        wrapped(
            "process back, queue back: from the fault to the first price and the first payment of the next leader. "
            "at once: how many were at work at the same instant. lost: payments that were never entered."
        ),
    ]
    if twice:
        lines.append(
            wrapped(f"{twice} payments were entered twice: late acknowledgement means at least once, never at once.")
        )
    lines += ["", "BROKEN PROMISES:", *(f"  {what}" for what in broken)] if broken else ["", "Every promise was kept."]
    return "\n".join(lines), not broken


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Have SIGTERM end the demonstration as Ctrl-C does."""

    def end(number: int, frame: Any) -> None:  # noqa: ARG001  # a signal handler
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(arguments: Sequence[str] | None = None) -> int:
    """Play the demonstration; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m example_project.demo", description=__doc__)
    parser.add_argument("--plain", action="store_true", help="plain lines, also on a terminal")
    parser.add_argument("--keep-logs", metavar="DIRECTORY", help="copy the workers' logs there at the end")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    screen = screen_for(plain=options.plain)
    try:
        with _ended_by_signals(), Stage() as stage:
            stage.start_servers()
            introduce(stage, screen)
            try:
                with screen:
                    screen.follow(stage)
                    results = play(stage, screen)
                text, kept = judge(stage, results)
            except WaitedInVainError as error:
                text, kept = f"\nGAVE UP: {error}\n{stage.logs()}", False
            if options.keep_logs:
                stage.keep_logs(options.keep_logs)
    except ServerError as error:
        screen.closing(f"The demonstration cannot start: {error}")
        return 1
    except KeyboardInterrupt:
        screen.closing("\nInterrupted: everything that was started is stopped.")
        return 130
    screen.closing(text)
    screen.closing(f"It took {time.monotonic() - start:.0f} s, and nothing is left behind.")
    return 0 if kept else 1


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    sys.exit(main())
