"""Stripe's balance transactions, as Stripe hands them out.

Taken are the Dashboard's balance export (CSV: `id`, `Type`, `Amount`, `Created (UTC)`, `Transfer`), the itemized
reports (CSV: `balance_transaction_id`, `gross`, `reporting_category`, `automatic_payout_id`;
docs.stripe.com/reports/report-types), and the API's list (JSON, whole cents and Unix seconds;
docs.stripe.com/api/balance_transactions/object).
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from darktree_kit.money import MAX_AMOUNT_NANOS, NANOS_PER_CENT, parse_dollars

MAX_TRANSACTIONS = 100_000  # a file
MAX_REFERENCES = 32
CHARGE, REFUND, DISPUTE, FEE, PAYOUT, OTHER = "charge", "refund", "dispute", "fee", "payout", "other"
# By Stripe's `type` and by its `reporting_category`; what is in neither is `other`, and an exception of the month.
_CATEGORY = {
    CHARGE: "charge payment",
    REFUND: "refund payment_refund refund_failure payment_failure_refund charge_failure",
    DISPUTE: "dispute dispute_reversal",
    FEE: "stripe_fee fee network_cost tax_fee",
    PAYOUT: "payout payout_cancel payout_failure payout_reversal",
}
CATEGORY_OF_TYPE = {name: category for category, names in _CATEGORY.items() for name in names.split()}
# Each of our fields, by the names that it has in the files, normalised as `_column` does.
_COLUMNS = {
    "id": ("id", "balance_transaction_id"),
    "type": ("type", "reporting_category"),
    "amount_cents": ("amount", "gross"),
    "fee_cents": ("fee",),
    "net_cents": ("net",),
    "currency": ("currency",),
    "created": ("created_utc", "created", "effective_at_utc", "effective_at"),
    "available_on": ("available_on_utc", "available_on"),
    "payout": ("automatic_payout_id", "transfer", "payout"),
    "source": ("source", "source_id", "payout_id"),
    "description": ("description",),
}
_OBJECT_ID = re.compile(r"(?:ch|py|pyr|pi|cs|re|dp|du|po|txn)_[A-Za-z0-9_]{1,200}")

Cents = Annotated[int, Field(ge=-MAX_AMOUNT_NANOS // NANOS_PER_CENT, le=MAX_AMOUNT_NANOS // NANOS_PER_CENT)]
Text = Annotated[str, Field(max_length=255)]


class ReportError(ValueError):
    """A file cannot be imported; the message names the row and the field."""


class BalanceTransaction(BaseModel):
    """One movement of the balance at Stripe. `known_as` is every id by which somebody may call what it is about."""

    model_config = ConfigDict(frozen=True)

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,255}$")]
    type: Annotated[str, Field(pattern=r"^[a-z_]{1,64}$")]
    amount_cents: Cents
    fee_cents: Cents
    net_cents: Cents
    currency: Annotated[str, Field(pattern=r"^[a-z]{3}$")]
    created: AwareDatetime
    available_on: AwareDatetime | None = None
    payout: Text | None = None
    source: Text | None = None
    description: Annotated[str, Field(max_length=5_000)] | None = None
    known_as: Annotated[list[Text], Field(max_length=MAX_REFERENCES)] = []

    @property
    def category(self) -> str:
        if self.type == "adjustment" and (self.source or "").startswith(("dp_", "du_")):
            return DISPUTE
        return CATEGORY_OF_TYPE.get(self.type, OTHER)


def parse_report(content: str) -> list[BalanceTransaction]:
    """Return a file's balance transactions. Raises ReportError."""
    content = content.removeprefix("\ufeff").strip()
    rows = _json_rows(content) if content.startswith(("{", "[")) else _csv_rows(content)
    found: list[BalanceTransaction] = []
    for number, row in enumerate(rows, 1):
        if number > MAX_TRANSACTIONS:
            raise ReportError(f"more than {MAX_TRANSACTIONS} balance transactions in one file")
        try:
            transaction = BalanceTransaction.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            raise ReportError(f"row {number}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        if transaction.net_cents != transaction.amount_cents - transaction.fee_cents:
            raise ReportError(f"row {number}: net: {transaction.id} is not its amount less its fee")
        found.append(transaction)
    return found


def _json_rows(content: str) -> Iterable[dict[str, Any]]:
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ReportError(f"this is not JSON: {error}") from error
    rows = document.get("data") if isinstance(document, dict) else document
    if not isinstance(rows, list):
        raise ReportError("this is not a list of balance transactions: there is no `data`")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ReportError(f"row {number}: this is no balance transaction")
        source = row.get("source")
        about = source if isinstance(source, dict) else {"id": source}
        metadata = about.get("metadata")
        values = [row.get("id"), *about.values(), *(metadata.values() if isinstance(metadata, dict) else ())]
        yield {
            **{name: row.get(name.removesuffix("_cents")) for name in _COLUMNS},
            # An adjustment is a dispute or something else, which only the category tells.
            "type": row.get("reporting_category") if row.get("type") == "adjustment" else row.get("type"),
            "source": about.get("id"),
            "created": _unix(row.get("created"), number),
            "available_on": _unix(row.get("available_on"), number) if row.get("available_on") else None,
            "known_as": _known_as(values),
        }


def _csv_rows(content: str) -> Iterable[dict[str, Any]]:
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    try:
        columns = [_column(name) for name in next(reader, [])]
        if not {"id", "balance_transaction_id"} & set(columns):
            raise ReportError(
                "this is no balance report of Stripe's: no column `id` or `balance_transaction_id`"
            )
        for number, cells in enumerate(reader, 1):
            yield _csv_row(dict(zip(columns, cells, strict=False)), number)
    except csv.Error as error:
        raise ReportError(f"this is not CSV: {error}") from error


def _csv_row(row: Mapping[str, str], number: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, columns in _COLUMNS.items():
        value = next((row[column].strip() for column in columns if row.get(column, "").strip()), None)
        try:
            if value is not None and name.endswith("_cents"):
                found[name] = _cents(value)
            elif value is not None and name in {"created", "available_on"}:
                found[name] = _instant(value)
            else:
                found[name] = value.lower() if value and name in {"type", "currency"} else value
        except ValueError as error:
            raise ReportError(f"row {number}: {columns[0]}: {error}") from error
    return found | {"known_as": _known_as(row.values())}


def _column(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")


def _cents(text: str) -> int:
    cents, rest = divmod(parse_dollars(text), NANOS_PER_CENT)
    if rest:
        raise ValueError(f"{text!r} is not a whole number of cents")
    return cents


def _instant(text: str) -> datetime:
    instant = datetime.fromisoformat(text)
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def _unix(value: Any, number: int) -> datetime:
    try:
        return datetime.fromtimestamp(int(value), UTC)
    except (TypeError, ValueError, OverflowError, OSError) as error:
        raise ReportError(f"row {number}: created: {value!r} is no time in Unix seconds") from error


def _known_as(values: Iterable[Any]) -> list[str]:
    ids = {value for value in values if isinstance(value, str) and _OBJECT_ID.fullmatch(value)}
    return sorted(ids)[:MAX_REFERENCES]
