"""`darktree dedicated`: who asked for a lane of their own, and the manifest to apply for it."""

from typing import Annotated

import typer

from darktree_billing.request_schemas import DecideLane, LaneRequestState, LaneRequestView
from darktree_billing.schemas import MAX_PAGE
from darktree_cli.arguments import checked
from darktree_cli.connection import DataDirOption, administer
from darktree_cli.output import Output, OutputOption, Row, show, show_fields

app = typer.Typer(no_args_is_help=True, help="Answer customers who want a lane of their own.")
COLUMNS = ("request", "customer", "asked", "model", "tokens a day", "first token", "state", "reason")
RequestArgument = Annotated[str, typer.Argument(help="The request's id.")]


@app.command("list")
def list_(
    customer: Annotated[str | None, typer.Option(help="Only this customer's.")] = None,
    state: Annotated[LaneRequestState | None, typer.Option(help="Only those that are so.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_PAGE, help="How many at most.")] = 100,
    after: Annotated[str | None, typer.Option(help="`next` of the page before.")] = None,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """List who asked for a dedicated lane, newest first."""
    page = administer(data_dir, lambda admin: admin.lane_requests(customer, state, limit=limit, after=after))
    note = f"More: --after {page.next}" if page.next else ""
    show(output, page, COLUMNS, [_row(request) for request in page.data], note)


@app.command("manifest")
def manifest(request: RequestArgument, data_dir: DataDirOption = None) -> None:
    """Print the InferenceLane for a request: `darktree dedicated manifest ID | kubectl apply -f -`."""
    typer.echo(administer(data_dir, lambda admin: admin.lane_manifest(request)), nl=False)


@app.command("accept")
def accept(
    request: RequestArgument,
    note: Annotated[str | None, typer.Option(help="The customer reads it.")] = None,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Tell the customer that the lane comes. Applying its manifest is yours."""
    _decide(request, checked(DecideLane, accept=True, note=note), output, data_dir)


@app.command("decline")
def decline(
    request: RequestArgument,
    note: Annotated[str, typer.Option(help="Why; the customer reads it.")],
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Tell the customer that there will be none."""
    _decide(request, checked(DecideLane, accept=False, note=note), output, data_dir)


def _decide(request: str, body: DecideLane, output: Output, data_dir: DataDirOption) -> None:
    decided = administer(data_dir, lambda admin: admin.decide_lane(request, body))
    show_fields(output, decided, list(zip(COLUMNS, _row(decided), strict=True)))


def _row(request: LaneRequestView) -> Row:
    wanted = request.first_token_milliseconds
    return (
        request.id,
        request.customer_id,
        f"{request.asked_at:%Y-%m-%d %H:%M}",
        request.model,
        request.tokens_per_day,
        None if wanted is None else f"{wanted} ms",
        request.state,
        request.reason,
    )
