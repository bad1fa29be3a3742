"""A dispute's evidence: what to send to Stripe, made from the ledger and a statement, in one zip.

`fields.json` has Stripe's text fields by their names in its API (docs.stripe.com/api/disputes/object, `evidence`), of
which `access_activity_log` stands beside it to be read; `service_documentation.pdf` goes to the field of that name.
Stripe takes each text up to 20,000 characters: of a longer log the newest lines are kept, and it says so.
"""

import asyncio
import io
import json
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy.ext.asyncio import AsyncSession

from darktree_billing import books_key
from darktree_billing.customers import find_customer
from darktree_billing.errors import UnknownDispute
from darktree_billing.models import Customer
from darktree_billing.pack import EPOCH
from darktree_billing.payment_models import OrderRow, ReversalRow
from darktree_billing.statement_json import Statement, json_lines, sha256_of
from darktree_billing.statement_pdf import pdf_bytes
from darktree_billing.statement_period import MAX_DAYS, Period
from darktree_billing.statements import statement
from darktree_kit.ids import request_id_of
from darktree_kit.money import NANOS_PER_CENT, format_dollars
from darktree_kit.notes import Signer
from darktree_ledger.client import LedgerClient

MAX_TEXT_CHARACTERS = 20_000  # Stripe's, of one field
LOG, DOCUMENTATION, FIELDS, STATEMENT = (
    "access_activity_log.txt", "service_documentation.pdf", "fields.json", "statement.json",
)  # fmt: skip
_USAGE_KINDS = ("usage", "absorbed")


async def make_evidence(
    session: AsyncSession, ledger: LedgerClient, signer: Signer | None, seller: str, dispute_id: str
) -> bytes:
    """Return the zip. Raises UnknownDispute, and Unavailable without the books' key or the ledger."""
    key = books_key.required(signer)
    dispute = await session.get(ReversalRow, dispute_id)
    if dispute is None or dispute.kind != "dispute":
        raise UnknownDispute(dispute_id)
    order = await session.get_one(OrderRow, dispute.order_id)
    customer = await find_customer(session, order.customer_id)
    async with statement(session, ledger, customer.id, _period(order, dispute), seller) as made:
        return await asyncio.to_thread(_zipped, made, key, seller, customer, order, dispute)


def _period(order: OrderRow, dispute: ReversalRow) -> Period:
    """Return the days from the order to the dispute, of which a statement tells the newest at most."""
    last = dispute.created_at.date()
    first = min(order.created_at.date(), last)
    return Period(max(first, last - timedelta(days=MAX_DAYS - 1)), last)


def _zipped(
    made: Statement, signer: Signer, seller: str, customer: Customer, order: OrderRow, dispute: ReversalRow
) -> bytes:
    log = activity_log(_entries(made), made.sections["keys"], order)
    fields = _fields(made, seller, customer, order, dispute) | {"access_activity_log": log}
    files: Mapping[str, bytes] = {
        DOCUMENTATION: pdf_bytes(made, sha256_of(made, signer)),
        FIELDS: (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode(),
        LOG: log.encode(),
        STATEMENT: b"".join(json_lines(made, signer)),
    }
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in sorted(files.items()):
            packed.writestr(zipfile.ZipInfo(name, EPOCH), content, zipfile.ZIP_DEFLATED)
    return written.getvalue()


def _entries(made: Statement) -> Iterator[dict[str, Any]]:
    made.entries.seek(0)
    for line in made.entries:
        yield orjson.loads(line)


def activity_log(entries: Iterator[dict[str, Any]], keys: list[dict[str, Any]], order: OrderRow) -> str:
    """Return a line for each request since the purchase, oldest first, as many of the newest as Stripe takes."""
    named = {key["key_id"]: f"{key['prefix']}...{key['last4']}" for key in keys}
    lines: deque[str] = deque()
    size = count = tokens = 0
    bought = False
    for entry in entries:
        bought = bought or entry["entry_id"] == str(order.grant_id)
        if not bought or entry["kind"] not in _USAGE_KINDS:
            continue
        count += 1
        tokens += entry["prompt_tokens"] + entry["completion_tokens"]
        lines.append(_line(entry, named))
        size += len(lines[-1]) + 1
        while size > MAX_TEXT_CHARACTERS - 1_000:  # what is left is for the words above the lines
            size -= len(lines.popleft()) + 1
    head = [
        f"Requests to the API, authenticated with this customer's own secret keys, since order {order.id} was paid: "
        f"{count} requests, {tokens} tokens.",
        "Times are UTC. Each line is an entry of an append-only ledger, which the attached statement proves.",
        "time | request | API key | model | prompt tokens | completion tokens | charged, in dollars",
    ]
    if count > len(lines):
        head.append(f"(the newest {len(lines)} of {count}; the statement has all of them by day)")
    return "\n".join([*head, *lines]) + "\n"


def _line(entry: dict[str, Any], named: Mapping[str, str]) -> str:
    request = entry["hold_id"] and request_id_of(UUID(entry["hold_id"]))
    charged = format_dollars(entry["amount_nanos"] if entry["kind"] == "usage" else 0)
    cells = (
        entry["recorded_at"][:19].replace("T", " "),
        request,
        named.get(entry["key_id"], entry["key_id"]),
        entry["model"],
        entry["prompt_tokens"],
        entry["completion_tokens"],
        charged,
    )
    return " | ".join(str(cell) for cell in cells)


def _fields(
    made: Statement, seller: str, customer: Customer, order: OrderRow, dispute: ReversalRow
) -> dict[str, str]:
    """Return Stripe's text fields, as far as Darktree knows what belongs there."""
    totals = made.sections["totals"]
    price = format_dollars(order.price_cents * NANOS_PER_CENT)
    granted: date = (order.granted_at or order.created_at).date()
    told = {
        "product_description": (
            f"{order.plan_name}: prepaid credits of ${price} for {seller}'s API for language models. Credits are added "
            "to the customer's balance as soon as the payment succeeds, and each request to the API is charged from it."
        ),
        "service_date": str(granted),
        "customer_name": customer.name,
        "customer_email_address": customer.email or "",
        "uncategorized_text": (
            f"Order {order.id}, charge {order.charge_id}, dispute {dispute.id}. The credits were granted on {granted} "
            f"(ledger entry {order.grant_id}). From {made.sections['statement']['start'][:10]} to "
            f"{made.sections['statement']['end'][:10]} the customer used ${format_dollars(totals['usage_nanos'])} of "
            f"credits in {totals['requests']} requests that were authenticated with the customer's secret API keys, "
            "which are shown only once, to the customer who is signed in. service_documentation.pdf is the statement "
            "of that time: usage by day, by model and by key. The ledger is append-only: its entries are chained by "
            "SHA-256 and sealed in a signed log, so that the statement can be verified without access to our systems."
        ),
    }
    return {name: text[:MAX_TEXT_CHARACTERS] for name, text in told.items() if text}
