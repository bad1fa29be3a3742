"""The command `darktree`: one module a command group, and one meaning for each exit code."""

import sys
from typing import Annotated

import typer

from darktree_cli import (
    backup,
    caps,
    close,
    credits,
    customers,
    dedicated,
    doctor,
    keys,
    lane_commands,
    ledger,
    limits,
    migrations,
    payments,
    plans,
    postgres_server,
    reconcile,
    selftest,
    statement,
    up,
)
from darktree_cli.connection import NoPlatform
from darktree_kit.errors import ApiError, Unreachable
from darktree_kit.version import VERSION

EXIT_REFUSED = 1
EXIT_NO_PLATFORM = 3
HELP = """Serve metered inference, and administer who may use how much of it.

A command finds the running platform by --data-dir, else by DARKTREE_ADMIN_URL and DARKTREE_ADMIN_TOKEN, else by the
nearest .darktree folder from here upwards.
"""
EXIT_CODES = (
    "Exit codes: 0 done, 1 the platform refused (or something is wrong), 2 the command was used wrongly, "
    "3 no running platform was found."
)

app = typer.Typer(
    name="darktree",
    help=HELP,
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("up")(up.up)
for group in (customers, keys, caps, limits, dedicated, plans, credits, payments, ledger, close, statement):
    app.add_typer(group.app, name=group.__name__.rpartition(".")[2], epilog=EXIT_CODES)
app.add_typer(lane_commands.app, name="lanes", epilog=EXIT_CODES)
app.command("doctor", epilog=EXIT_CODES)(doctor.command)
app.command("reconcile", epilog=EXIT_CODES)(reconcile.command)
app.command("selftest", epilog=EXIT_CODES)(selftest.command)
app.command("migrate")(migrations.command)
app.command("postgres")(postgres_server.command)
app.command("backup", epilog=EXIT_CODES)(backup.backup)
app.command("restore")(backup.restore)


def main() -> None:
    """Run the command line, and end with its exit code."""
    try:
        app()
    except NoPlatform as error:
        _end(str(error), EXIT_NO_PLATFORM)
    except Unreachable as error:
        _end(f"{error.message}. Is the platform running?", EXIT_NO_PLATFORM)
    except ApiError as error:
        _end(error.message, EXIT_REFUSED)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"darktree {VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    del version  # its callback has answered


def _end(message: str, code: int) -> None:
    typer.echo(f"darktree: {message}", err=True)
    sys.exit(code)
