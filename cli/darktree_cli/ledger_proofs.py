"""`darktree ledger export` and `darktree ledger verify`: the log with its entries, proven offline."""

import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated

import typer

from darktree_billing.client import AdminClient
from darktree_cli.connection import DataDirOption, administer
from darktree_cli.output import Output, OutputOption, show_fields

Stream = Callable[[AdminClient], AsyncIterator[bytes]]
CustomerOption = Annotated[str | None, typer.Option("--customer", help="Only this customer's entries.")]


def export(
    file: Annotated[Path, typer.Argument(dir_okay=False, help="Where to write it (JSON lines).")],
    customer: CustomerOption = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A checkpoint that you kept: proofs of one customer's entries with it."),
    ] = None,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Write what the newest checkpoint covers, with what proves it, into a file for `ledger verify`."""
    from darktree_cli.verifying import kept_note

    note = kept_note(checkpoint)
    written = fetch(data_dir, file, lambda admin: admin.export_ledger(customer, note))
    show_fields(output, {"file": str(file), "bytes": written}, [("file", file), ("bytes", written)])


def verify(
    file: Annotated[
        Path | None, typer.Argument(help="An export; without it, the running platform is exported.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="A checkpoint that you kept: the file of the note.")
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option("--key", help="A verifier key of the log that you trust; may be repeated."),
    ] = None,
    customer: CustomerOption = None,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Prove an export offline: every hash, chain, balance and signature, and the root of the log itself.

    Exit codes: 0 proven, 1 something differs, 2 it cannot be read.
    """
    from darktree_cli.verifying import kept_note

    note = kept_note(checkpoint)
    if file is not None:
        _verify(file, note, key, output)
        return
    with tempfile.TemporaryDirectory(prefix="dt-") as folder:
        exported = Path(folder) / "ledger.jsonl"
        fetch(data_dir, exported, lambda admin: admin.export_ledger(customer, note))
        _verify(exported, note, key, output)


def fetch(data_dir: Path | None, file: Path, stream: Stream) -> int:
    """Write what billing streams into a file, whole or not at all; return how many bytes."""

    async def fetched(admin: AdminClient) -> int:
        beside = file.with_name(f".{file.name}.part")
        try:
            with beside.open("wb") as part:
                async for piece in stream(admin):
                    part.write(piece)
                written = part.tell()
            beside.replace(file)
        finally:
            beside.unlink(missing_ok=True)
        return written

    try:
        return administer(data_dir, fetched)
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}") from error


def _verify(file: Path, note: str | None, keys: list[str] | None, output: Output) -> None:
    # The cryptography is imported only here: other commands shall start fast.
    from darktree_cli import verifying
    from darktree_ledger import export_file

    trusted = verifying.trusted(keys)
    report = verifying.readable(lambda: export_file.verify(file, trusted, note, verifying.progress()), output)
    facts = {
        "entries": report.entries,
        "customers": report.customers,
        "customer_id": report.customer_id,
        "checkpoint": verifying.describe(report.checkpoint),
        "earlier": verifying.describe(report.earlier),
        "earlier_entries": report.earlier_entries,
        "continues": [
            {"ended": verifying.describe(link.ended), "common": verifying.describe(link.common)}
            for link in report.continued
        ],
        "keys_are_yours": report.pinned,
    }
    proves = [
        f"each of the {report.entries:,} entries is as it was hashed, follows the one before it, and adds up",
    ]
    if report.checkpoint is not None:
        size = f"{report.checkpoint.size:,}"
        proves.append(
            f"they are the {size} entries of the log that the checkpoint signs, none altered, missing, added or moved"
            if report.customer_id is None
            else f"the newest is in the log of {size} entries that the checkpoint signs, and so are those before it"
        )
    if report.earlier is not None:
        proves.append(
            f"the first {report.earlier_entries:,} of them were already in the log of "
            f"{report.earlier.size:,} entries that you kept: history before it was not rewritten"
        )
    for link in report.continued:
        proves.append(
            f"the log {link.ended.origin} ended when it had {link.ended.size:,} entries or more; this one goes on "
            f"from its first {link.common.size:,}. What came after those is lost, and its signers say so"
        )
    proves.append(verifying.key_warning(report.pinned, report.signed_by))
    verifying.verdict(output, report.failures, facts, proves, export_file.NOT_PROVEN)
