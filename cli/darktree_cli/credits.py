"""`darktree credits`: give a customer prepaid credits by hand, or correct a balance."""

from typing import Annotated
from uuid import UUID

import typer

from darktree_billing.schemas import AdjustCredits, GrantCredits
from darktree_cli.arguments import CustomerArgument, checked
from darktree_cli.connection import DataDirOption, administer
from darktree_cli.output import Output, OutputOption, dollars, show_fields
from darktree_kit import ids
from darktree_kit.money import parse_dollars

app = typer.Typer(no_args_is_help=True, help="Give credits, and correct balances.")


@app.command("grant")
def grant(
    customer: CustomerArgument,
    amount: Annotated[str, typer.Option("--dollars", help="A decimal number of dollars: 50 or 12.50.")],
    reason: Annotated[str, typer.Option(help="Why; it becomes part of the ledger's entry.")],
    grant_id: Annotated[
        str | None,
        typer.Option("--id", help="A UUID of your own: repeating the command with it gives nothing more."),
    ] = None,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Give credits: one entry in the ledger."""
    _check(amount)
    own_id: UUID | str = grant_id or ids.uuid7()
    body = checked(GrantCredits, dollars=amount, reason=reason, grant_id=own_id)
    granted = administer(data_dir, lambda admin: admin.grant(customer, body))
    fields = [
        ("customer", granted.customer_id),
        (
            "granted",
            dollars(granted.amount_nanos) + (" (before; nothing more now)" if granted.replayed else ""),
        ),
        ("balance", dollars(granted.balance_nanos)),
        ("entry", granted.entry_id),
        ("grant", granted.grant_id),
    ]
    show_fields(output, granted, fields)


@app.command("adjust")
def adjust(
    customer: CustomerArgument,
    amount: Annotated[str, typer.Option("--dollars", help="Dollars to add, or to take: 12.50 or -12.50.")],
    reason: Annotated[str, typer.Option(help="Why; it becomes part of the ledger's entry.")],
    adjustment_id: Annotated[
        str | None,
        typer.Option("--id", help="A UUID of your own: repeating the command with it changes nothing more."),
    ] = None,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Correct a balance, up or down: one entry in the ledger."""
    _check(amount)
    own_id: UUID | str = adjustment_id or ids.uuid7()
    body = checked(AdjustCredits, dollars=amount, reason=reason, adjustment_id=own_id)
    adjusted = administer(data_dir, lambda admin: admin.adjust(customer, body))
    fields = [
        ("customer", adjusted.customer_id),
        (
            "adjusted by",
            dollars(adjusted.amount_nanos) + (" (before; nothing more now)" if adjusted.replayed else ""),
        ),
        ("balance", dollars(adjusted.balance_nanos)),
        ("entry", adjusted.entry_id),
        ("adjustment", adjusted.adjustment_id),
    ]
    show_fields(output, adjusted, fields)


def _check(amount: str) -> None:
    try:
        parse_dollars(amount)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--dollars") from error
