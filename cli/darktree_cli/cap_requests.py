"""`darktree caps requests|approve|decline`: who asked for another daily cap, and the answer."""

from typing import Annotated

import typer

from darktree_billing.request_schemas import CapRequestState, CapRequestView, DecideCap
from darktree_billing.schemas import MAX_PAGE
from darktree_cli.arguments import checked
from darktree_cli.connection import DataDirOption, administer
from darktree_cli.output import Output, OutputOption, Row, show, show_fields

COLUMNS = ("request", "customer", "asked", "asked cap", "state", "cap", "decided by", "reason")
RequestArgument = Annotated[str, typer.Argument(help="The request's id.")]


def requests(
    customer: Annotated[str | None, typer.Option(help="Only this customer's.")] = None,
    state: Annotated[CapRequestState | None, typer.Option(help="Only those that are so.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_PAGE, help="How many at most.")] = 100,
    after: Annotated[str | None, typer.Option(help="`next` of the page before.")] = None,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """List who asked for another cap, newest first."""
    page = administer(data_dir, lambda admin: admin.cap_requests(customer, state, limit=limit, after=after))
    note = f"More: --after {page.next}" if page.next else ""
    show(output, page, COLUMNS, [_row(request) for request in page.data], note)


def approve(
    request: RequestArgument,
    tokens: Annotated[int | None, typer.Option(min=0, help="Another cap than the one asked for.")] = None,
    note: Annotated[str | None, typer.Option(help="The customer reads it.")] = None,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Set the cap that was asked for, from now on."""
    body = checked(DecideCap, approve=True, cap_tokens=tokens, note=note)
    _print(output, administer(data_dir, lambda admin: admin.decide_cap(request, body)))


def decline(
    request: RequestArgument,
    note: Annotated[str, typer.Option(help="Why; the customer reads it.")],
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Leave the cap as it is."""
    body = checked(DecideCap, approve=False, note=note)
    _print(output, administer(data_dir, lambda admin: admin.decide_cap(request, body)))


def _print(output: Output, decided: CapRequestView) -> None:
    show_fields(output, decided, list(zip(COLUMNS, _row(decided), strict=True)))


def _row(request: CapRequestView) -> Row:
    return (
        request.id,
        request.customer_id,
        f"{request.asked_at:%Y-%m-%d %H:%M}",
        request.asked_cap_tokens,
        request.state,
        request.decided_cap_tokens,
        request.decided_by,
        request.reason,
    )
