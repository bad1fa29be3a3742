"""`darktree close 2026-11`: close a month, and hand its pack to the bookkeeper."""

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from darktree_billing.close_schemas import MAX_IMPORT_CHARACTERS, ImportBalance
from darktree_cli.connection import DataDirOption, administer
from darktree_cli.output import Output, OutputOption, show, show_fields

_MONTH = re.compile(r"\d{4}-\d\d?")


class _MonthFirst(TyperGroup):
    """Takes a month where a command would stand: `darktree close 2026-11` is `darktree close month 2026-11`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        return super().resolve_command(ctx, ["month", *args] if _MONTH.fullmatch(args[0]) else args)


app = typer.Typer(
    cls=_MonthFirst,
    no_args_is_help=True,
    help="Close months: journal for QuickBooks, deferred revenue, Stripe's clearing account, signed.",
    subcommand_metavar="2026-11 | COMMAND [ARGS]...",
)


@app.command("month")
def month(
    month: Annotated[str, typer.Argument(help="The month, in UTC: 2026-11.")],
    to: Annotated[
        Path, typer.Option(file_okay=False, help="Unpack the pack into a folder in here.")
    ] = Path(),
    preview: Annotated[
        bool, typer.Option("--preview", help="Look at an open month: nothing is closed or signed.")
    ] = False,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Close a month and fetch its pack. Again, it fetches the same bytes, and checks them against the ledger.

    The word `month` may be left out: darktree close 2026-11.
    """
    if preview:
        content = administer(data_dir, lambda admin: admin.close_preview(month))
        folder = _unpack(content, to / f"PREVIEW-close-{month}")
        fields = [
            ("month", month),
            ("status", "PREVIEW: open, unsigned, and it may change"),
            ("files", folder),
        ]
        show_fields(output, {"month": month, "status": "preview", "folder": str(folder)}, fields)
        return
    closed = administer(data_dir, lambda admin: admin.close_month(month))
    content = administer(data_dir, lambda admin: admin.close_pack(month))
    folder = _unpack(content, to / f"close-{month}")
    again = (
        f"closed {closed.closed_at:%Y-%m-%d %H:%M} UTC; the ledger still gives the same bytes"
        if not closed.differs
        else "closed before, but made anew these would differ: " + ", ".join(closed.differs)
    )
    fields = [
        ("month", closed.month),
        ("status", "closed now" if closed.is_new else again),
        ("exceptions", f"{closed.exceptions}, see exceptions.csv" if closed.exceptions else "none"),
        ("files", folder),
        ("manifest", f"SHA-256 {closed.manifest_sha256}"),
    ]
    show_fields(output, closed.model_dump(mode="json") | {"folder": str(folder)}, fields)
    if closed.differs:
        raise typer.Exit(1)


@app.command("list")
def list_(output: OutputOption = Output.TABLE, data_dir: DataDirOption = None) -> None:
    """List closed months, newest first, and the key that signs them."""
    closes = administer(data_dir, lambda admin: admin.closes())
    rows = [
        (row.month, f"{row.closed_at:%Y-%m-%d %H:%M}", row.exceptions, row.pack_bytes, row.manifest_sha256)
        for row in closes.data
    ]
    columns = ("month", "closed (UTC)", "exceptions", "bytes", "manifest's SHA-256")
    show(output, closes, columns, rows, note=f"The books' key: {closes.books_key or 'none'}")


@app.command("import")
def import_(
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="CSV or JSON, as Stripe gives it.")
    ],
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Import Stripe's balance transactions: a balance export, an itemized report, or the API's list."""
    if file.stat().st_size > MAX_IMPORT_CHARACTERS:
        raise typer.BadParameter(f"the file is larger than {MAX_IMPORT_CHARACTERS} bytes: import it in parts")
    try:
        body = ImportBalance(file=file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise typer.BadParameter("the file is not UTF-8") from error
    found = administer(data_dir, lambda admin: admin.import_balance(body))
    fields = [
        ("imported", found.imported),
        ("known before", found.known_before),
        ("learned more of", found.learned),
        ("posted", f"{found.posted} entries for fees and payouts"),
        ("months", ", ".join(found.months)),
    ]
    show_fields(output, found, fields)


@app.command("verify")
def verify(
    pack: Annotated[Path, typer.Argument(exists=True, help="A pack: the zip, or the folder of its files.")],
    key: Annotated[
        list[str] | None,
        typer.Option(help="The books' verifier key (darktree close list), which you kept elsewhere."),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Check a pack's files and signature, offline; exit code 1 when something was changed."""
    from darktree_billing.pack import (
        PackError,
        read_pack,
        verify_pack,
    )  # cryptography, which others shall not pay
    from darktree_kit.notes import NoteError, parse_verifier

    try:
        trusted = [parse_verifier(text) for text in key or []]
    except NoteError as error:
        raise typer.BadParameter(str(error), param_hint="--key") from error
    try:
        found = verify_pack(read_pack(pack), trusted)
    except PackError as error:
        if output is Output.JSON:
            typer.echo(json.dumps({"ok": False, "problem": str(error)}, indent=2))
        typer.echo(f"darktree: {pack} does not verify: {error}", err=True)
        raise typer.Exit(1) from error
    proves = (
        "no file was changed since the holder of this key signed them"
        if found.is_key_trusted
        else "no file was changed since they were signed; who signed them only --key can tell"
    )
    fields = [
        ("month", found.month),
        ("files", f"{found.files}, each as it was signed"),
        ("signed by", found.signed_by),
        ("proves", proves),
    ]
    answer = {
        "ok": True, "month": found.month, "files": found.files, "signed_by": found.signed_by,
        "is_key_trusted": found.is_key_trusted, "manifest_sha256": found.manifest_sha256,
    }  # fmt: skip
    show_fields(output, answer, fields)


def _unpack(content: bytes, folder: Path) -> Path:
    from darktree_billing.pack import unpack

    files = unpack(content)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, written in files.items():
            (folder / name).write_bytes(written)
    except OSError as error:
        raise typer.BadParameter(f"{folder}: {error.strerror}", param_hint="--to") from error
    return folder
