"""`darktree customers`: who buys, and by which plan."""

from typing import Annotated

import typer

from darktree_billing.schemas import MAX_PAGE, CreateCustomer, CustomerView
from darktree_cli.arguments import CustomerArgument, checked
from darktree_cli.connection import DataDirOption, administer
from darktree_cli.output import Output, OutputOption, Row, show, show_fields

app = typer.Typer(no_args_is_help=True, help="Make and list customers.")
COLUMNS = ("id", "name", "email", "plan", "created")


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="What to call the customer.")],
    plan: Annotated[str, typer.Option(help="A plan's id; its default cap becomes the customer's.")],
    customer_id: Annotated[
        str | None, typer.Option("--id", help="Chosen by the platform when absent.")
    ] = None,
    email: Annotated[str | None, typer.Option(help="Where statements go.")] = None,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Make a customer, with no credits yet and no key."""
    body = checked(CreateCustomer, id=customer_id, name=name, email=email, plan=plan)
    made = administer(data_dir, lambda admin: admin.create_customer(body))
    show_fields(output, made, _fields(made))


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=MAX_PAGE, help="How many at most.")] = 100,
    after: Annotated[str | None, typer.Option(help="`next` of the page before.")] = None,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """List customers, by id."""
    page = administer(data_dir, lambda admin: admin.customers(limit=limit, after=after))
    note = f"More: --after {page.next}" if page.next else ""
    show(output, page, COLUMNS, [_row(customer) for customer in page.data], note)


@app.command("show")
def show_(
    customer: CustomerArgument,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Show one customer."""
    found = administer(data_dir, lambda admin: admin.customer(customer))
    show_fields(output, found, _fields(found))


def _row(customer: CustomerView) -> Row:
    return (
        customer.id,
        customer.name,
        customer.email,
        customer.plan,
        f"{customer.created_at:%Y-%m-%d %H:%M}",
    )


def _fields(customer: CustomerView) -> list[Row]:
    return list(zip(COLUMNS, _row(customer), strict=True))
