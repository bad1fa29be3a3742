"""`darktree ledger`: read balances and entries, and have the ledger prove that they agree."""

from typing import Annotated

import typer

from darktree_billing.schemas import MAX_PAGE
from darktree_cli import archive, ledger_proofs
from darktree_cli.arguments import CustomerArgument
from darktree_cli.connection import DataDirOption, administer
from darktree_cli.output import Output, OutputOption, Row, dollars, show, show_fields
from darktree_kit.ids import request_id_of
from darktree_ledger.schemas import EntryView

app = typer.Typer(no_args_is_help=True, help="Read the ledger, check it, and prove it.")
app.command("export")(ledger_proofs.export)
app.command("verify")(ledger_proofs.verify)
app.command("archive")(archive.command)


@app.command("entries")
def entries(
    customer: CustomerArgument,
    limit: Annotated[int, typer.Option(min=1, max=MAX_PAGE, help="How many at most.")] = 20,
    after: Annotated[str | None, typer.Option(help="`next` of the page before.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only grant, usage or absorbed.")] = None,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """List a customer's entries, newest first."""
    page = administer(data_dir, lambda admin: admin.entries(customer, limit=limit, after=after, kind=kind))
    columns = ("seq", "recorded", "kind", "amount", "balance after", "prompt", "completion", "what")
    note = f"More: --after {page.next}" if page.next else ""
    show(output, page, columns, [_row(entry) for entry in page.data], note)


@app.command("balance")
def balance(
    customer: CustomerArgument,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Show what a customer has left, in dollars and in today's tokens."""
    account = administer(data_dir, lambda admin: admin.balance(customer))
    fields = [
        ("customer", account.customer_id),
        ("balance", dollars(account.balance_nanos)),
        ("held", f"{dollars(account.held_nanos)} in {account.open_holds} open holds"),
        ("today", f"{account.day_tokens} of {account.cap_tokens} tokens (UTC day {account.day})"),
        ("entries", account.entry_count),
        ("head", account.head),
    ]
    show_fields(output, account, fields)


@app.command("holds")
def holds(
    customer: Annotated[str | None, typer.Option(help="Only this customer's.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_PAGE, help="How many at most.")] = 20,
    after: Annotated[str | None, typer.Option(help="`next` of the page before.")] = None,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """List what running requests hold, by customer and age."""
    page = administer(data_dir, lambda admin: admin.holds(customer, limit=limit, after=after))
    columns = ("customer", "request", "placed", "expires", "amount", "prompt", "completion", "lane")
    rows = [
        (
            hold.customer_id,
            request_id_of(hold.hold_id),
            f"{hold.placed_at:%Y-%m-%d %H:%M:%S}",
            f"{hold.expires_at:%H:%M:%S}",
            dollars(hold.amount_nanos),
            hold.prompt_tokens,
            hold.completion_tokens,
            hold.lane,
        )
        for hold in page.data
    ]
    show(output, page, columns, rows, f"More: --after {page.next}" if page.next else "")


@app.command("check")
def check(output: OutputOption = Output.TABLE, data_dir: DataDirOption = None) -> None:
    """Compare every balance with its entries and recompute every chain; exit code 1 when something is wrong."""
    report = administer(data_dir, lambda admin: admin.check_ledger())
    counted = f"{report.customers} customers, {report.entries} entries, {report.open_holds} open holds"
    if report.problems or output is Output.JSON:
        rows = [
            (problem.customer_id, problem.what, problem.expected, problem.found)
            for problem in report.problems
        ]
        show(output, report, ("customer", "what", "expected", "found"), rows, note=counted)
    else:
        typer.echo(f"All is well: {counted}.")
    if report.problems:
        raise typer.Exit(1)


def _row(entry: EntryView) -> Row:
    what = entry.reason or " ".join(filter(None, [entry.model, entry.lane, entry.outcome]))
    return (
        entry.seq,
        f"{entry.recorded_at:%Y-%m-%d %H:%M:%S}",
        entry.kind,
        dollars(entry.amount_nanos),
        dollars(entry.balance_after_nanos),
        entry.prompt_tokens,
        entry.completion_tokens,
        what,
    )
