"""`darktree caps`: how many tokens a customer may use in a UTC day."""

from typing import Annotated

import typer

from darktree_billing.schemas import CapView, SetCap
from darktree_cli import cap_requests
from darktree_cli.arguments import CustomerArgument, checked
from darktree_cli.connection import DataDirOption, administer
from darktree_cli.output import Output, OutputOption, show_fields
from darktree_kit import ids

app = typer.Typer(
    no_args_is_help=True, help="Show and set daily token caps, and answer who asks for another."
)
app.command("requests")(cap_requests.requests)
app.command("approve")(cap_requests.approve)
app.command("decline")(cap_requests.decline)


@app.command("show")
def show(
    customer: CustomerArgument,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Show a customer's cap, and how much of today's is used."""
    _print(output, administer(data_dir, lambda admin: admin.cap(customer)))


@app.command("set")
def set_(
    customer: CustomerArgument,
    tokens: Annotated[int, typer.Argument(min=0, help="Tokens a UTC day; 0 stops everything.")],
    reason: Annotated[str, typer.Option(help="Why; it is kept.")] = "set by an administrator",
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Raise or lower a customer's cap, from now on."""
    body = checked(SetCap, cap_tokens=tokens, reason=reason, operation_id=ids.uuid7())
    _print(output, administer(data_dir, lambda admin: admin.set_cap(customer, body)))


def _print(output: Output, cap: CapView) -> None:
    hours, minutes = divmod(cap.reset_seconds // 60, 60)
    left = max(0, cap.cap_tokens - cap.day_tokens - cap.day_held_tokens)
    fields = [
        ("customer", cap.customer_id),
        ("cap", f"{cap.cap_tokens} tokens a day"),
        ("used today", f"{cap.day_tokens} tokens"),
        ("held now", f"{cap.day_held_tokens} tokens"),
        ("left today", f"{left} tokens"),
        ("resets in", f"{hours} h {minutes} min"),
    ]
    for change in cap.changes:
        was = "" if change.previous_cap_tokens is None else f" (was {change.previous_cap_tokens})"
        fields.append((f"{change.changed_at:%Y-%m-%d %H:%M}", f"{change.cap_tokens}{was}: {change.reason}"))
    show_fields(output, cap, fields)
