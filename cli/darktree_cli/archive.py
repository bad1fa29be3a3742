"""`darktree ledger archive`: take a closed month's entries out of use, into a file that proves itself."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from darktree_cli.output import Output, OutputOption, show_fields
from darktree_cli.settings import Settings


def command(
    month: Annotated[str, typer.Argument(help="A closed month, such as 2025-11; the oldest first.")],
    folder: Annotated[Path, typer.Option(file_okay=False, help="Where the file and its manifest go.")] = Path(
        "archive"
    ),
    output: OutputOption = Output.TABLE,
) -> None:
    """Write a closed month's entries to a file, verify it, and detach the month's table. Nothing is deleted.

    DATABASE_URL is a URL of someone who may migrate: the services' own roles can detach nothing.
    """
    from darktree_ledger.archive import (  # half a second, which no other command shall pay
        ArchiveError,
        archive,
    )

    settings = Settings()
    if settings.database_url is None:
        raise typer.BadParameter("set DATABASE_URL to the ledger's database", param_hint="DATABASE_URL")
    try:
        first_day = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC).date()
    except ValueError as error:
        raise typer.BadParameter("a month is written as 2025-11", param_hint="MONTH") from error
    try:
        done = archive(settings.database_url.get_secret_value(), first_day, folder)
    except ArchiveError as error:
        typer.echo(f"darktree: {error}", err=True)
        raise typer.Exit(1) from error
    fields = [
        ("file", str(done.file)),
        ("manifest", str(done.manifest)),
        ("entries", done.entries),
        ("customers", done.customers),
        ("sha256", done.sha256),
    ]
    show_fields(output, dict(fields), fields)
