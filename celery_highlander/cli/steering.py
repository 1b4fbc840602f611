"""The commands that move singletons: step-down, pause, resume, drain, prefer, fence; and `history`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from celery_highlander.cli import output
from celery_highlander.cli.common import as_json_option, plugin_of, told

if TYPE_CHECKING:
    from celery_highlander.cli.operator import Operator, Result

_EXIT_CODES = """

    The exit code is 0 when it is done, 1 if it is not done in time or makes no sense (the order stands in the first
    case), 69 if the database cannot be reached, 78 if settings, rights or tables are not in order.
    """

_timeout = click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long to wait for it to be done (default: 20 s and a lease).",
)
_reason = click.option("--reason", default="", metavar="TEXT", help="Why; shown in logs, status and history.")
_now = click.option(
    "--now", is_flag=True, help="Kill tasks that run for longer than highlander_drain_timeout; they may finish else."
)


def _operator(ctx: click.Context, timeout: float | None = None, reason: str = "", **more: Any) -> Operator:
    from celery_highlander.cli import operator  # noqa: PLC0415  # only what is asked for

    return operator.Operator(plugin_of(ctx), timeout, reason, **more)


def _finish(ctx: click.Context, result: Result, *, as_json: bool) -> None:
    if as_json:
        output.write_json({"done": result.done, **result.facts})
    else:
        for line in result.lines:
            click.echo(line, err=not result.done)
    ctx.exit(output.EX_OK if result.done else output.EX_PROBLEM)


def _names(names: tuple[str, ...], everything: bool) -> list[str]:
    if everything == bool(names):
        raise click.UsageError("Say which singletons, or --all.")
    return list(names)


@click.command(
    "step-down",
    short_help="Have the leader give a singleton to another node.",
    epilog="Example: celery -A proj highlander step-down ledger --to w2@host",
    help="""Have the leader of NAME stop its work and hand over, and wait until another node leads.

    With --to the next leader is NODE: a worker's name, or the beginning of a node's uuid; `status --nodes` lists them.
    It keeps NAME for as long as the nodes stay the same."""
    + _EXIT_CODES,
)
@click.argument("name", metavar="NAME")
@click.option("--to", metavar="NODE", help="The node that has to take over.")
@_now
@_reason
@_timeout
@as_json_option
@click.pass_context
def step_down(
    ctx: click.Context, name: str, to: str | None, now: bool, reason: str, timeout: float | None, as_json: bool
) -> None:
    """Have the present term of a singleton end."""
    with told(ctx, as_json=as_json), _operator(ctx, timeout, reason) as operator:
        _finish(ctx, operator.step_down(name, to, patient=not now), as_json=as_json)


@click.command(
    short_help="Have nobody lead a singleton.",
    epilog="Example: celery -A proj highlander pause ledger --reason 'year-end closing'",
    help="""Have nobody in the whole cluster lead NAME until it is resumed, and wait until nobody does.

    That survives restarts of everything. With --all nobody leads anything in this namespace."""
    + _EXIT_CODES,
)
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--all", "everything", is_flag=True, help="Pause everything, also what is declared later.")
@_now
@_reason
@_timeout
@as_json_option
@click.pass_context
def pause(
    ctx: click.Context,
    names: tuple[str, ...],
    everything: bool,
    now: bool,
    reason: str,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Pause singletons."""
    chosen = _names(names, everything)
    with told(ctx, as_json=as_json), _operator(ctx, timeout, reason) as operator:
        _finish(ctx, operator.pause(chosen, everything=everything, patient=not now), as_json=as_json)


@click.command(
    short_help="Let a paused singleton be led again.",
    epilog="Example: celery -A proj highlander resume --all",
    help="""End the pause of NAME, and wait until a node leads it. With --all end every pause.""" + _EXIT_CODES,
)
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--all", "everything", is_flag=True, help="End every pause.")
@_timeout
@as_json_option
@click.pass_context
def resume(ctx: click.Context, names: tuple[str, ...], everything: bool, timeout: float | None, as_json: bool) -> None:
    """Resume singletons."""
    chosen = _names(names, everything)
    with told(ctx, as_json=as_json), _operator(ctx, timeout) as operator:
        _finish(ctx, operator.resume(chosen, everything=everything), as_json=as_json)


@click.command(
    short_help="Have a node lead nothing.",
    epilog="Example: celery -A proj highlander drain w1@host",
    help="""Have NODE hand over all that it leads, and take nothing, until it is started again or --off is given.

    NODE is a worker's name, or the beginning of a node's uuid; `status --nodes` lists them."""
    + _EXIT_CODES,
)
@click.argument("node", metavar="NODE")
@click.option("--off", is_flag=True, help="Let it lead again.")
@_now
@_reason
@_timeout
@as_json_option
@click.pass_context
def drain(
    ctx: click.Context, node: str, off: bool, now: bool, reason: str, timeout: float | None, as_json: bool
) -> None:
    """Drain a node."""
    with told(ctx, as_json=as_json), _operator(ctx, timeout, reason) as operator:
        result = operator.undrain(node) if off else operator.drain(node, patient=not now)
        _finish(ctx, result, as_json=as_json)


@click.command(
    short_help="Have a singleton belong to a node.",
    epilog="Example: celery -A proj highlander prefer price-feed w3@host",
    help="""Have NAME led by the worker NODE whenever that takes part, and by any other one else.

    Survives restarts. Where another node leads, it hands over once the nodes have stayed the same for some seconds."""
    + _EXIT_CODES,
)
@click.argument("name", metavar="NAME")
@click.argument("node", metavar="NODE", required=False)
@click.option("--off", is_flag=True, help="Let any node lead it again.")
@_reason
@as_json_option
@click.pass_context
def prefer(ctx: click.Context, name: str, node: str | None, off: bool, reason: str, as_json: bool) -> None:
    """Prefer a node for a singleton."""
    if off == bool(node):
        raise click.UsageError("Say which node, or --off.")
    with told(ctx, as_json=as_json), _operator(ctx, None, reason) as operator:
        _finish(ctx, operator.prefer(name, node), as_json=as_json)


@click.command(
    short_help="End the lock session of a leader that cannot be reached.",
    epilog="Example: celery -A proj highlander fence ledger --yes",
    help="""End the database session that holds NAME, and wait until somebody leads again.

    For a leader that does not step down. All that its node leads is lost with the session: it is stopped, or killed,
    before the lease ends, and others take over then."""
    + _EXIT_CODES,
)
@click.argument("name", metavar="NAME")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_timeout
@as_json_option
@click.pass_context
def fence(ctx: click.Context, name: str, yes: bool, timeout: float | None, as_json: bool) -> None:
    """End the session of a leader."""
    with told(ctx, as_json=as_json), _operator(ctx, timeout) as operator:
        holder = operator.status().get(operator.known(name))
        if not yes and sys.stdin.isatty():
            who = holder.worker if holder is not None and holder.worker else "its holder"
            click.confirm(f"End the lock session of {who}, and with it all that it leads?", err=True, abort=True)
        _finish(ctx, operator.fence(name), as_json=as_json)


@click.command(
    short_help="Show who led what, and why it ended.",
    epilog="Example: celery -A proj highlander history ledger --limit 10",
    help="""Show the last terms of each singleton, or of NAME: who, since when, for how long, why it ended, and the gap
    in which nobody led.

    --plot draws them as a time line: into a file, whose ending says what it is (.svg, .png, .pdf; the extra `plot`),
    or with `-` in the terminal. Some hundred terms of each singleton are on record.

    The exit code is 0, 69 if the database cannot be reached, 78 if settings, rights or tables are not in order.""",
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="How many of each singleton.")
@click.option("--plot", metavar="FILE", help="Draw a time line: a file, or `-` for the terminal.")
@as_json_option
@click.pass_context
def history(ctx: click.Context, names: tuple[str, ...], limit: int, plot: str | None, as_json: bool) -> None:
    """Show the terms on record."""
    from celery_highlander.cli import history as command  # noqa: PLC0415  # only what is asked for

    with told(ctx, as_json=as_json), _operator(ctx, writes=False) as operator:
        terms = operator.history(list(names), limit)
        if as_json:
            output.write_json(command.as_json(operator.namespace, terms))
        elif plot == "-":
            command.draw(terms)
        elif plot is not None:
            command.plot(terms, plot)
        else:
            command.write(terms)


COMMANDS: tuple[click.Command, ...] = (history, step_down, pause, resume, drain, prefer, fence)
