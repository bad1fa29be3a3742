"""`darktree keys`: a customer's API keys. A key is shown once, when it is made."""

from datetime import datetime
from typing import Annotated

import typer

from darktree_billing.schemas import MAX_PAGE, CreateKey, KeyView
from darktree_cli.arguments import CustomerArgument, checked
from darktree_cli.connection import DataDirOption, administer
from darktree_cli.output import Output, OutputOption, Row, show, show_fields

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")


@app.command("create")
def create(
    customer: CustomerArgument,
    name: Annotated[str, typer.Option(help="What it is for.")] = "default",
    expires_at: Annotated[
        str | None,
        typer.Option(help="When it ends, with a time zone: 2030-01-31T00:00:00Z. Never when absent."),
    ] = None,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Make a key and print it, for the only time."""
    body = checked(CreateKey, name=name, expires_at=expires_at)
    made = administer(data_dir, lambda admin: admin.create_key(customer, body))
    fields = [("key", made.key), ("id", made.id), ("name", made.name), ("expires", _time(made.expires_at))]
    show_fields(output, made, fields)


@app.command("list")
def list_(
    customer: CustomerArgument,
    limit: Annotated[int, typer.Option(min=1, max=MAX_PAGE, help="How many at most.")] = 100,
    after: Annotated[str | None, typer.Option(help="`next` of the page before.")] = None,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """List a customer's keys, oldest first."""
    page = administer(data_dir, lambda admin: admin.keys(customer, limit=limit, after=after))
    note = f"More: --after {page.next}" if page.next else ""
    columns = ("id", "name", "key", "status", "created", "expires", "last used")
    show(output, page, columns, [_row(key) for key in page.data], note)


@app.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")],
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Revoke a key for good. Every gateway refuses it within ten seconds."""
    revoked = administer(data_dir, lambda admin: admin.revoke_key(key))
    fields = [("id", revoked.id), ("status", revoked.status), ("revoked", _time(revoked.revoked_at))]
    show_fields(output, revoked, fields)


def _row(key: KeyView) -> Row:
    shown = f"{key.prefix}...{key.last4}"
    return (
        key.id,
        key.name,
        shown,
        key.status,
        _time(key.created_at),
        _time(key.expires_at),
        key.last_used_day,
    )


def _time(moment: datetime | None) -> str | None:
    return f"{moment:%Y-%m-%d %H:%M}" if moment else None
