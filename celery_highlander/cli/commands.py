"""The command group; Celery imports it for every `celery …` command, so it also enables the plugin by setting alone."""

from __future__ import annotations

import sys

import click

from celery_highlander.cli import output, steering
from celery_highlander.cli.common import as_json_option, plugin_of, told
from celery_highlander.worker import auto

auto.enable()


@click.group(
    name="highlander",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: celery -A proj highlander status",
)
def highlander() -> None:
    """Who leads what, and whether it can work.

    All but `free` and `sweep` ask the database alone: they work while workers and broker are down.
    """


@highlander.command(
    short_help="Show who leads what, or which singleton tasks run.",
    epilog="Example: celery -A proj highlander status --json | jq .singletons",
)
@click.option("--tasks", "of_tasks", is_flag=True, help="Show singleton tasks instead: who holds a key, and who waits.")
@click.option("--nodes", "of_nodes", is_flag=True, help="Show the nodes instead: who takes part, and who leads what.")
@click.option("--wide", is_flag=True, help="Show pids, tokens, and how the last terms ended, too.")
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C.")
@click.option(
    "--interval", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Seconds between two looks."
)
@as_json_option
@click.pass_context
def status(
    ctx: click.Context, of_tasks: bool, of_nodes: bool, wide: bool, watch: bool, interval: float, as_json: bool
) -> None:
    """Show for each singleton who leads it, since when, and who stands by.

    With --tasks, show the runs of singleton tasks that hold a key, and the messages that wait for one. A run that is
    `owed` has lost its lock session: until its lease is over, nobody else gets its key.

    A role that may only read the tables is enough. Fit for probes; the exit code is 0 if every singleton is led (with
    --tasks: always), 1 if one is led by nobody, 69 if the database cannot be reached, 78 if settings, rights or tables
    are not in order.
    """
    from celery_highlander.cli import status as command  # noqa: PLC0415  # only what is asked for
    from celery_highlander.cli import tasks  # noqa: PLC0415
    from celery_highlander.cli import watch as watching  # noqa: PLC0415
    from celery_highlander.cli.operator import Operator  # noqa: PLC0415
    from celery_highlander.store import run_status  # noqa: PLC0415

    if (of_tasks, of_nodes, watch).count(True) > 1 or (watch and as_json):
        raise click.UsageError("--tasks, --nodes, --watch and --watch with --json exclude each other.")
    with told(ctx, as_json=as_json):
        plugin = plugin_of(ctx)
        settings = plugin.settings()
        if of_tasks:
            runs = run_status.read(plugin.target(settings), settings.namespace, settings.schema)
            if as_json:
                output.write_json(tasks.as_json(settings.namespace, runs))
            else:
                tasks.write(runs)
            return
        if of_nodes:
            with Operator(plugin, writes=False) as operator:
                nodes, led = operator.nodes(), list(operator.status().values())
            if as_json:
                output.write_json(command.nodes_as_json(settings.namespace, nodes, led))
            else:
                command.write_nodes(nodes, led)
            return
        if watch:
            watching.watch(settings.namespace, plugin.status, interval, wide=wide)
            return
        found = plugin.status()
        if as_json:
            output.write_json(command.as_json(settings.namespace, found))
        else:
            command.write(settings.namespace, found, wide=wide)
        ctx.exit(command.exit_code(found))


@highlander.command(
    short_help="Kill a singleton task's run, and free its key.",
    epilog="Example: celery -A proj highlander free 'shop.sync_account(account_id=42)'",
)
@click.argument("word", metavar="KEY-or-TASK-ID")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="How long to wait for the run to be gone (default: 10 s; of a dead lock session, as long as its lease takes).",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json_option
@click.pass_context
def free(ctx: click.Context, word: str, timeout: float | None, yes: bool, as_json: bool) -> None:
    """Free a key by force: kill the run that holds it (SIGKILL), and wait until it is gone.

    `status --tasks` lists keys and task ids. The key of a run that lives is never freed; where a pool cannot kill a
    single task, restart that worker. Where only a message waits for the key, its place is freed.

    The exit code is 0 if the key is free, 1 if there is no such key or it is not free, 69 if database or broker cannot
    be reached, 78 if settings, rights or tables are not in order.
    """
    from celery_highlander.cli import free as command  # noqa: PLC0415  # only what is asked for

    with told(ctx, as_json=as_json):
        asks = sys.stdin.isatty() and not yes
        freeing = command.Freeing(
            plugin_of(ctx),
            timeout,
            command.ask if asks else lambda _found: True,
            lambda sentence: click.echo(sentence, err=True),
        )
        outcome = freeing.run(word)
        if as_json:
            output.write_json(command.as_json(outcome))
        else:
            command.write(outcome)
        ctx.exit(command.exit_code(outcome))


@highlander.command(
    short_help="Look for messages of singleton tasks that are gone.",
    epilog="Example: celery -A proj highlander sweep",
)
@click.option(
    "--age",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    default=0.0,
    help="Skip those that somebody has looked for within so many seconds (default: none).",
)
@as_json_option
@click.pass_context
def sweep(ctx: click.Context, age: float, as_json: bool) -> None:
    """Look for messages that are recorded as waiting for a key, and are gone: purged, or lost with their broker.

    Workers do so by themselves, once a minute. A message counts as gone when it has expired or its result is there, or
    after two looks in a row that missed it: then sweep twice. Another one may be sent for its key from then on.

    The exit code is 0, 69 if database or broker cannot be reached, 78 if settings, rights or tables are not in order.
    """
    from celery_highlander.cli import sweep as command  # noqa: PLC0415  # only what is asked for

    with told(ctx, as_json=as_json):
        swept = command.run(plugin_of(ctx), age)
        if as_json:
            output.write_json(command.as_json(swept))
        else:
            command.write(swept)


@highlander.command(
    short_help="Ask this host's worker whether it does well.",
    epilog="Example: celery -A proj highlander health --url http://127.0.0.1:9808",
)
@click.option("--url", help="Where the worker answers (default: highlander_http_address).", metavar="URL")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=3.0, show_default=True)
@as_json_option
@click.pass_context
def health(ctx: click.Context, url: str | None, timeout: float, as_json: bool) -> None:
    """Ask a worker, over HTTP, whether it does well; for liveness probes. It needs neither broker nor database.

    A standby does well, and so does a worker whose database is away once it leads nothing: a restart would mend
    neither. A lease that ran out, a silent keeper and a main loop without progress are problems.

    The exit code is 0 if it does well, 1 if it does not, 69 if nobody answers, 78 if there is no address.
    """
    from celery_highlander.cli import health as command  # noqa: PLC0415  # only what is asked for

    with told(ctx, as_json=as_json):
        found = command.ask(url or command.url_of(plugin_of(ctx).settings().http_address), timeout)
        if as_json:
            output.write_json(found)
        else:
            command.write(found)
        ctx.exit(output.EX_OK if found["ok"] else output.EX_PROBLEM)


@highlander.command(short_help="Check settings, server and rights.", epilog="Example: celery -A proj highlander doctor")
@as_json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check settings, server and rights, and say what to do about what is wrong.

    Changes nothing. The exit code is 1 if a check found an error, 0 otherwise.
    """
    from celery_highlander.cli import doctor as command  # noqa: PLC0415  # only what is asked for

    with told(ctx, as_json=as_json):
        findings = command.examine(plugin_of(ctx))
        if as_json:
            output.write_json(command.as_json(findings))
        else:
            command.write(findings)
        ctx.exit(command.exit_code(findings))


@highlander.command(
    short_help="Create or update the tables.",
    epilog="Example: celery -A proj highlander migrate --sql | psql --username=owner shop",
)
@click.option("--sql", "only_sql", is_flag=True, help="Print the SQL instead, for a role that may run it.")
@as_json_option
@click.pass_context
def migrate(ctx: click.Context, only_sql: bool, as_json: bool) -> None:
    """Create the tables, or bring them to the version of this release.

    Workers do so by themselves at their start, where their role may create tables and highlander_migrate is not False.
    Doing it twice, or from several places at once, is harmless.
    """
    from celery_highlander.cli import migrate as command  # noqa: PLC0415  # only what is asked for

    with told(ctx, as_json=as_json):
        plugin = plugin_of(ctx)
        settings = plugin.settings()
        target = plugin.target(settings)
        if only_sql:
            script = command.sql(target, settings.schema)
            if as_json:
                output.write_json({"sql": script})
            else:
                click.echo(script, nl=False)
            return
        done = command.run(target, settings.schema)
        if as_json:
            output.write_json(done)
        else:
            command.write(done)


for command in steering.COMMANDS:
    highlander.add_command(command)
