"""`darktree payments`: orders, refunds, disputes, Stripe's events, and what no webhook brought."""

from pathlib import Path
from typing import Annotated

import typer

from darktree_billing.payments_schemas import (
    BeginCheckout,
    EventState,
    FreezeView,
    OrderView,
    RefundOrder,
    ReversalKind,
    SetFrozen,
)
from darktree_billing.schemas import MAX_PAGE
from darktree_cli.arguments import CustomerArgument, checked
from darktree_cli.connection import DataDirOption, administer
from darktree_cli.output import Output, OutputOption, Row, dollars, show, show_fields
from darktree_kit import ids
from darktree_kit.money import NANOS_PER_CENT, parse_dollars

app = typer.Typer(no_args_is_help=True, help="Orders, refunds, disputes and Stripe's events.")
CustomerOption = Annotated[str | None, typer.Option("--customer", help="Only this customer's.")]
LimitOption = Annotated[int, typer.Option(min=1, max=MAX_PAGE, help="How many at most.")]
AfterOption = Annotated[str | None, typer.Option(help="`next` of the page before.")]
OrderArgument = Annotated[str, typer.Argument(help="The order's id.")]
ReasonOption = Annotated[str, typer.Option(help="Why; it is kept.")]


@app.command("status")
def status(output: OutputOption = Output.TABLE, data_dir: DataDirOption = None) -> None:
    """Show how buying stands; exit code 1 when something needs a person."""
    told = administer(data_dir, lambda admin: admin.payments_status())
    fields = [
        ("buying", "on" if told.buying else "off: no key for Stripe is set"),
        ("events waiting", told.events_waiting),
        ("oldest waiting", told.oldest_waiting_seconds and f"{told.oldest_waiting_seconds} s"),
        ("events given up", told.events_dead),
        *((f"orders {state}", count) for state, count in told.orders.items()),
        ("swept to", told.swept_at and f"{told.swept_at:%Y-%m-%d %H:%M} UTC"),
    ]
    show_fields(output, told, fields)
    if told.events_dead or told.orders.get("review"):
        raise typer.Exit(1)


@app.command("list")
def list_(
    customer: CustomerOption = None,
    limit: LimitOption = 100,
    after: AfterOption = None,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """List orders, newest first."""
    page = administer(data_dir, lambda admin: admin.orders(customer, limit=limit, after=after))
    rows = [
        (
            order.id,
            order.customer_id,
            order.plan,
            _cents(order.price_cents),
            order.state,
            _cents(order.refunded_cents),
            _cents(order.disputed_cents),
            f"{order.created_at:%Y-%m-%d %H:%M}",
        )
        for order in page.data
    ]
    columns = ("order", "customer", "plan", "price", "state", "refunded", "disputed", "ordered (UTC)")
    show(output, page, columns, rows, _more(page.next))


@app.command("show")
def show_(order: OrderArgument, output: OutputOption = Output.TABLE, data_dir: DataDirOption = None) -> None:
    """Show an order, and what was taken back of it."""
    _print(output, administer(data_dir, lambda admin: admin.order(order)))


@app.command("begin")
def begin(
    customer: CustomerArgument,
    plan: Annotated[str, typer.Argument(help="The plan's id.")],
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Order a plan's bundle for a customer, and print where it can be paid."""
    body = checked(BeginCheckout, plan=plan)
    made = administer(data_dir, lambda admin: admin.begin_checkout(customer, body))
    show_fields(output, made, [("order", made.order_id), ("pay at", made.url)])


@app.command("check")
def check(order: OrderArgument, output: OutputOption = Output.TABLE, data_dir: DataDirOption = None) -> None:
    """Look at Stripe now, and bring the order to where its payment stands."""
    _print(output, administer(data_dir, lambda admin: admin.check_order(order)))


@app.command("refund")
def refund(
    order: OrderArgument,
    reason: ReasonOption,
    amount: Annotated[
        str | None, typer.Option("--dollars", help="A part, tax included; else all that is left.")
    ] = None,
    refund_id: Annotated[
        str | None, typer.Option("--id", help="A UUID of your own: repeating it refunds nothing more.")
    ] = None,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Have Stripe pay back. What is unused of the credits is taken back; the house bears the rest."""
    body = checked(
        RefundOrder,
        amount_cents=None if amount is None else _parse_cents(amount),
        reason=reason,
        refund_id=refund_id or ids.uuid7(),
    )
    _print(output, administer(data_dir, lambda admin: admin.refund_order(order, body)))


@app.command("disputes")
def disputes(
    refunds: Annotated[bool, typer.Option("--refunds", help="List refunds instead.")] = False,
    customer: CustomerOption = None,
    limit: LimitOption = 100,
    after: AfterOption = None,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """List disputes, newest first."""
    kind: ReversalKind = "refund" if refunds else "dispute"
    page = administer(data_dir, lambda admin: admin.reversals(kind, customer, limit=limit, after=after))
    rows = [
        (
            row.id,
            row.order_id,
            row.customer_id,
            _cents(row.amount_cents),
            row.status,
            _cents(row.taken_cents),
            row.reason,
            f"{row.evidence_due_at:%Y-%m-%d %H:%M}" if row.evidence_due_at else None,
        )
        for row in page.data
    ]
    columns = ("id", "order", "customer", "amount", "status", "taken", "reason", "evidence due (UTC)")
    show(output, page, columns, rows, _more(page.next))


@app.command("evidence")
def evidence(
    dispute: Annotated[str, typer.Argument(help="The dispute's id.")],
    to: Annotated[Path, typer.Option(file_okay=False, help="Write the zip into this folder.")] = Path(),
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Write down what to send to Stripe about a dispute, made from the ledger and a statement."""
    content = administer(data_dir, lambda admin: admin.evidence(dispute))
    file = to / f"evidence-{dispute}.zip"
    try:
        file.write_bytes(content)
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}", param_hint="--to") from error
    answer = {"file": str(file), "bytes": len(content)}
    show_fields(output, answer, [("file", file), ("bytes", len(content))])


@app.command("events")
def events(
    state: Annotated[
        EventState | None, typer.Option(help="Only those that are so: dead need a person.")
    ] = None,
    limit: LimitOption = 100,
    after: AfterOption = None,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """List Stripe's events as they came, newest first."""
    page = administer(data_dir, lambda admin: admin.events(state, limit=limit, after=after))
    rows = [
        (
            event.id,
            event.type,
            event.object_id,
            event.state,
            event.attempts,
            event.order_id,
            f"{event.received_at:%Y-%m-%d %H:%M}",
            event.error,
        )
        for event in page.data
    ]
    columns = ("event", "type", "about", "state", "attempts", "order", "received (UTC)", "error")
    show(output, page, columns, rows, _more(page.next))


@app.command("retry")
def retry(
    event: Annotated[str, typer.Argument(help="The event's id.")],
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Handle an event again, as if it had just come."""
    told = administer(data_dir, lambda admin: admin.retry_event(event))
    show_fields(output, told, [("event", told.id), ("type", told.type), ("state", told.state)])


@app.command("sweep")
def sweep(output: OutputOption = Output.TABLE, data_dir: DataDirOption = None) -> None:
    """Ask Stripe for everything that may have been missed; exit code 1 when not all of it could be had."""
    found = administer(data_dir, lambda admin: admin.sweep())
    fields = [
        ("events found", found.events_found),
        ("orders checked", found.orders_checked),
        ("orders granted", found.orders_granted),
        ("balance transactions", found.balance_transactions),
        *(("problem", problem) for problem in found.problems),
    ]
    show_fields(output, found, fields)
    if found.problems:
        raise typer.Exit(1)


@app.command("freeze")
def freeze(
    customer: CustomerArgument,
    reason: ReasonOption,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Refuse a customer's keys, until they are let go."""
    body = checked(SetFrozen, frozen=True, reason=reason)
    _print_freeze(output, administer(data_dir, lambda admin: admin.set_frozen(customer, body)))


@app.command("unfreeze")
def unfreeze(
    customer: CustomerArgument,
    reason: ReasonOption,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Take a frozen customer's keys again."""
    body = checked(SetFrozen, frozen=False, reason=reason)
    _print_freeze(output, administer(data_dir, lambda admin: admin.set_frozen(customer, body)))


def _print(output: Output, order: OrderView) -> None:
    fields: list[Row] = [
        ("order", order.id),
        ("customer", order.customer_id),
        ("bundle", f"{order.plan_name}, {_cents(order.price_cents)}"),
        ("state", order.state + (f": {order.problem}" if order.problem else "")),
        ("tax", _cents(order.tax_cents)),
        ("session", order.session_id),
        ("charge", order.charge_id),
        ("granted", order.granted_at and f"{order.granted_at:%Y-%m-%d %H:%M} UTC, entry {order.grant_id}"),
        ("refunded", _cents(order.refunded_cents)),
        ("disputed", _cents(order.disputed_cents)),
    ]
    fields += [
        (row.kind, f"{row.id}, {_cents(row.amount_cents)}, {row.status}, took {_cents(row.taken_cents)}")
        for row in order.reversals
    ]
    show_fields(output, order, fields)


def _print_freeze(output: Output, told: FreezeView) -> None:
    fields: list[Row] = [("customer", told.customer_id), ("frozen", "yes" if told.frozen else "no")]
    fields += [
        (
            f"{change.at:%Y-%m-%d %H:%M}",
            f"{'frozen' if change.frozen else 'let go'} by {change.by}: {change.reason}",
        )
        for change in told.changes
    ]
    show_fields(output, told, fields)


def _cents(cents: int) -> str:
    return dollars(cents * NANOS_PER_CENT)


def _parse_cents(amount: str) -> int:
    try:
        cents, rest = divmod(parse_dollars(amount), NANOS_PER_CENT)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--dollars") from error
    if rest:
        raise typer.BadParameter(f"{amount!r} is not a whole number of cents", param_hint="--dollars")
    return cents


def _more(following: str | None) -> str:
    return f"More: --after {following}" if following else ""
