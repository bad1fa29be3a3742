"""`darktree limits`: how many requests a customer's keys may send, in a minute and at once."""

from typing import Annotated

import typer

from darktree_billing.schemas import LimitsView, RequestLimits
from darktree_cli.arguments import CustomerArgument, checked
from darktree_cli.connection import DataDirOption, administer
from darktree_cli.output import Output, OutputOption, show_fields

app = typer.Typer(no_args_is_help=True, help="Show and set how many requests a customer's keys may send.")


@app.command("show")
def show(
    customer: CustomerArgument,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Show what each key may send, and whether that is the plan's or the customer's own."""
    _print(output, administer(data_dir, lambda admin: admin.limits(customer)))


@app.command("set")
def set_(
    customer: CustomerArgument,
    per_minute: Annotated[
        int | None,
        typer.Option(min=0, help="Requests a minute; 0 without a limit; as the plan says if absent."),
    ] = None,
    at_once: Annotated[
        int | None,
        typer.Option(min=0, help="Requests at once; 0 without a limit; as the plan says if absent."),
    ] = None,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Give a customer limits of their own, or with no option the plan's again. Gateways follow within seconds."""
    body = checked(RequestLimits, requests_per_minute=per_minute, concurrent_requests=at_once)
    _print(output, administer(data_dir, lambda admin: admin.set_limits(customer, body)))


def _print(output: Output, limits: LimitsView) -> None:
    rows = (
        ("requests a minute", limits.in_force.requests_per_minute, limits.own.requests_per_minute),
        ("requests at once", limits.in_force.concurrent_requests, limits.own.concurrent_requests),
    )
    fields = [("customer", limits.customer_id)]
    for name, in_force, own in rows:
        whose = "the plan's" if own is None else "their own"
        fields.append((name, f"{'any number' if in_force is None else in_force} ({whose})"))
    show_fields(output, limits, fields)
