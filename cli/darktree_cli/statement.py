"""`darktree statement`: what a customer bought, used and has left, for people and for verifiers."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from darktree_cli.arguments import CustomerArgument
from darktree_cli.connection import DataDirOption
from darktree_cli.ledger_proofs import fetch
from darktree_cli.output import Output, OutputOption, dollars, show_fields

app = typer.Typer(no_args_is_help=True, help="Show, export and verify statements.")
PeriodArgument = Annotated[str, typer.Argument(help="UTC days: 2026-11, or 2026-11-01_2026-11-15.")]
FORMATS = ("json", "csv", "pdf")


@app.command("show")
def show(
    customer: CustomerArgument,
    period: PeriodArgument,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Show a statement's numbers."""
    with tempfile.TemporaryDirectory(prefix="dt-") as folder:
        file = Path(folder) / "statement.json"
        fetch(data_dir, file, lambda admin: admin.statement(customer, period, "json"))
        parts = _parts(file)
    totals, told = parts["totals"], parts["statement"]
    tokens = f"{totals['prompt_tokens']} prompt, {totals['completion_tokens']} completion"
    fields = [
        ("number", f"{told['number']} ({told['status']})"),
        ("customer", f"{parts['customer']['name']} ({customer})"),
        ("opening balance", dollars(totals["opening_nanos"])),
        ("+ purchases", dollars(totals["purchases_nanos"])),
        ("+ bonus credits", dollars(totals["bonus_nanos"])),
        ("- usage", dollars(totals["usage_nanos"])),
        ("+ adjustments", dollars(totals["adjustments_nanos"])),
        ("= closing balance", dollars(totals["closing_nanos"])),
        ("of which bonus", dollars(totals["closing_bonus_nanos"])),
        ("requests", totals["requests"]),
        ("tokens", tokens),
        ("refused at the cap", parts["caps"]["refused_requests"]),
        ("days at the cap", parts["caps"]["days_at_cap"]),
    ]
    show_fields(output, parts, fields)


@app.command("export")
def export(
    customer: CustomerArgument,
    period: PeriodArgument,
    format: Annotated[str, typer.Option(help="json, csv or pdf.")] = "pdf",
    to: Annotated[Path | None, typer.Option(dir_okay=False, help="The file to write.")] = None,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Write a statement into a file. The JSON has every entry, and can be verified."""
    if format not in FORMATS:
        raise typer.BadParameter(f"one of {', '.join(FORMATS)}", param_hint="--format")
    file = to or Path(f"statement-{customer}-{period}.{format}")
    written = fetch(data_dir, file, lambda admin: admin.statement(customer, period, format))
    show_fields(output, {"file": str(file), "bytes": written}, [("file", file), ("bytes", written)])


@app.command("verify")
def verify(
    file: Annotated[Path, typer.Argument(help="A statement's JSON.")],
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="A checkpoint that you kept: the file of the note.")
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(
            "--key", help="A verifier key that you trust, of the books or the log; may be repeated."
        ),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Prove a statement offline: every entry, every total, its place in the signed log, and every byte.

    Exit codes: 0 proven, 1 something differs, 2 it cannot be read.
    """
    # The cryptography is imported only here: other commands shall start fast.
    from darktree_billing import statement_verification
    from darktree_cli import verifying
    from darktree_ledger.export_file import NOT_PROVEN

    trusted, note = verifying.trusted(key), verifying.kept_note(checkpoint)
    report = verifying.readable(
        lambda: statement_verification.verify(file, trusted, note, verifying.progress()), output
    )
    facts = {
        "number": report.number,
        "customer_id": report.customer_id,
        "entries": report.entries,
        "checkpoint": verifying.describe(report.checkpoint),
        "earlier": verifying.describe(report.earlier),
        "signed_by": report.signed_by,
        "keys_are_yours": report.pinned,
    }
    proves = [
        f"each of the {report.entries:,} entries of {report.number} is as it was hashed, and follows the one before",
        "every total is what the entries give, and no byte of the file was changed since it was signed",
    ]
    not_proven = [*NOT_PROVEN, "names, plan, refusals and caps: they are signed, but not in the log"]
    if report.checkpoint is None:
        not_proven.insert(0, "that the entries are in the log: no checkpoint covered them yet")
    else:
        size = f"{report.checkpoint.size:,}"
        proves.append(f"the newest entry, and with it all before, is in the signed log of {size} entries")
    if report.earlier is not None:
        proves.append(f"that log continues the one of {report.earlier.size:,} entries that you kept")
    keys = [name for name in [report.signed_by, *report.log_keys] if name]
    proves.append(verifying.key_warning(report.pinned, keys))
    verifying.verdict(output, report.failures, facts, proves, not_proven)


def _parts(file: Path) -> dict[str, Any]:
    """Return a statement without its entries, which may be many."""
    with file.open("rb") as lines:
        head = []
        for line in lines:
            if line.startswith(b'"entries"'):
                break
            head.append(line)
    parts: dict[str, Any] = orjson.loads(b"".join(head).rstrip(b",\n") + b"}")
    return parts
