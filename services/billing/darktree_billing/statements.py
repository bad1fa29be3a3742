"""Statements: what a customer bought, used and has left in a period, with every entry and what proves it.

Made from the ledger's export, folded once (`statement_totals`), and told as JSON, CSV and PDF with the same numbers.
Of a period whose months are closed nothing depends on when it is made: the same bytes, however often.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from typing import IO, Any

import orjson
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from darktree_billing.accounts import ledger_refusals
from darktree_billing.customers import find_customer
from darktree_billing.key_format import prefix_of
from darktree_billing.models import ApiKey, Customer
from darktree_billing.months import Month
from darktree_billing.statement_json import FORMAT, HOW_TO_VERIFY, SECTIONS, Statement
from darktree_billing.statement_period import Period
from darktree_billing.statement_totals import Row, Totals
from darktree_kit.errors import ApiError, Unavailable
from darktree_kit.notes import split
from darktree_ledger.books_schemas import AsOf, ClosedMonth
from darktree_ledger.checkpoints import parse_checkpoint
from darktree_ledger.client import LedgerClient
from darktree_ledger.errors import NotInTheLog
from darktree_ledger.receipts import LogKeyView
from darktree_ledger.schemas import MAX_PAGE, AccountView, CapChangeView, DayView

ENTRIES_IN_MEMORY_BYTES = 4_000_000  # more go to a temporary file


@asynccontextmanager
async def statement(
    session: AsyncSession,
    ledger: LedgerClient,
    customer_id: str,
    period: Period,
    seller: str,
    *,
    proven: bool = True,
) -> AsyncIterator[Statement]:
    """Make a statement, for as long as the `with` lasts. Raises UnknownCustomer and the ledger's refusals.

    Who only looks at the numbers leaves out the proof, which is a third of the questions to the ledger.
    """
    customer = await find_customer(session, customer_id)
    ledger = ledger.of(customer_id)
    with tempfile.SpooledTemporaryFile(ENTRIES_IN_MEMORY_BYTES, prefix="dt-statement-") as entries:
        with ledger_refusals():
            # Which months are closed is asked first: what is exported of them afterwards is whole.
            opening, months = await asyncio.gather(
                ledger.as_of(customer_id, period.start), ledger.closed_months()
            )
            closed = {f"{month.month:%Y-%m}": month for month in months}
            (totals, count), standing = await asyncio.gather(
                _fold(ledger, period, opening, entries), _standing(ledger, customer_id, period)
            )
            sections = _sections(customer, period, seller, totals, standing, closed)
            sections["chain"] = {
                "opening": {"seq": opening.seq, "head": opening.head},
                "closing": {"seq": totals.seq, "head": totals.head},
            }
            proof = await _proof(ledger, customer_id, period, totals.seq, closed) if proven else None
            sections["proof"] = proof
        sections["keys"] = await _keys(session, customer_id, sections["usage_by_key"])
        sections["how_to_verify"] = list(HOW_TO_VERIFY)
        yield Statement({name: sections[name] for name in SECTIONS}, entries, count)


async def _fold(
    ledger: LedgerClient, period: Period, opening: AsOf, entries: IO[bytes]
) -> tuple[Totals, int]:
    """Write the period's entries down and add them up. Raises Unavailable when they are no whole chain."""
    totals = Totals(opening.balance_nanos, opening.bonus_nanos, opening.seq, opening.head)
    count = 0
    async for line in _lines(ledger.export(opening.customer_id, period.start, period.end)):
        entry = orjson.loads(line)
        if entry["seq"] != totals.seq + 1 or entry["prev_hash"] != totals.head:
            raise Unavailable(
                f"Entry {entry['seq']} of {opening.customer_id} does not follow entry {totals.seq} in this period.",
                code="broken_chain",
            )
        totals.add(entry)
        entries.write(orjson.dumps(entry) + b"\n")
        count += 1
    return totals, count


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line
    if rest:
        yield rest


async def _standing(
    ledger: LedgerClient, customer_id: str, period: Period
) -> tuple[AccountView, list[CapChangeView], list[DayView]]:
    """Return what a statement tells that follows from no entry: the account now, its caps, and its days."""
    return await asyncio.gather(
        ledger.account(customer_id),
        _cap_changes(ledger, customer_id, period),
        ledger.days(customer_id, period.first_day, period.last_day),
    )


def _sections(
    customer: Customer,
    period: Period,
    seller: str,
    totals: Totals,
    standing: tuple[AccountView, list[CapChangeView], list[DayView]],
    closed: dict[str, ClosedMonth],
) -> dict[str, Any]:
    months = {str(Month(day.year, day.month)) for day in period.days}
    sections = totals.sections()
    account, changes, days = standing
    is_running = account.day <= period.last_day
    sections["statement"] = {
        "format": FORMAT,
        "number": f"DT-{period}-{customer.id}",
        "period": str(period),
        "start": _instant(period.start),
        "end": _instant(period.end),
        "status": "final" if months <= closed.keys() else "preliminary",
        "currency": "USD",
        "unit": "amounts are integers of nano-dollars: 1,000,000,000 are one dollar",
        "seller": seller,
    }
    sections["customer"] = {
        "id": customer.id,
        "name": customer.name,
        "email": customer.email,
        "plan": customer.plan,
    }
    refused = {str(day.day): day.refused_requests for day in days}
    sections["caps"] = _caps(changes, refused, period, sections["usage_by_day"])
    sections["holds"] = {"open": account.open_holds, "held_nanos": account.held_nanos} if is_running else None
    return sections


async def _cap_changes(ledger: LedgerClient, customer_id: str, period: Period) -> list[CapChangeView]:
    """Return the cap's changes from the last one before the period on, or all, oldest first."""
    changes: list[CapChangeView] = []
    while True:
        page = await ledger.cap_changes(customer_id, changes[-1].operation_id if changes else None)
        changes += page
        if len(page) < MAX_PAGE or page[-1].changed_at < period.start:
            return changes[::-1]


def _caps(
    changes: list[CapChangeView], refused: dict[str, int], period: Period, used: list[Row]
) -> dict[str, Any]:
    """Return the cap's history, and each day's cap with what was used of it and refused."""
    tokens = {row["day"]: row["prompt_tokens"] + row["completion_tokens"] for row in used}
    days = []
    for day in map(str, period.days):
        cap = _cap_at(changes, date.fromisoformat(day))
        if cap is not None and (day in tokens or refused.get(day)):
            row = {"day": day, "cap_tokens": cap, "tokens": tokens.get(day, 0)}
            days.append(row | {"refused_requests": refused.get(day, 0), "at_cap": tokens.get(day, 0) >= cap})
    within = [change for change in changes if period.start <= change.changed_at < period.end]
    return {
        "opening_cap_tokens": _cap_at(changes, period.first_day - timedelta(days=1)),
        "changes": [
            {
                "changed_at": _instant(change.changed_at),
                "cap_tokens": change.cap_tokens,
                "previous_cap_tokens": change.previous_cap_tokens,
                "reason": change.reason,
                "actor": change.actor,
            }
            for change in within
        ],
        "days": days,
        "days_at_cap": sum(day["at_cap"] for day in days),
        "refused_requests": sum(day["refused_requests"] for day in days),
    }


def _cap_at(changes: list[CapChangeView], day: date) -> int | None:
    """Return the cap at the end of a day; None before there was one."""
    return next((change.cap_tokens for change in reversed(changes) if change.changed_at.date() <= day), None)


async def _proof(
    ledger: LedgerClient, customer_id: str, period: Period, seq: int, closed: dict[str, ClosedMonth]
) -> dict[str, Any] | None:
    """Prove the newest entry under the closing checkpoint, or the newest while the month is open; None before that."""
    month = Month(period.last_day.year, period.last_day.month)
    try:
        note = closed[str(month)].checkpoint if str(month) in closed else await ledger.checkpoint()
        size = parse_checkpoint(split(note)[0]).size
        inclusion = await ledger.inclusion(customer_id, seq, size) if seq else None
        before = closed.get(str(Month(period.first_day.year, period.first_day.month).previous))
        earlier = None
        if before is not None and 0 < before.tree_size <= size:
            consistency = await ledger.consistency(before.tree_size, size)
            earlier = {"checkpoint": before.checkpoint, "consistency": consistency.proof}
        published = await ledger.log_keys()
    except ApiError as error:
        if error.answer_code == NotInTheLog.code:
            return None
        raise
    return {
        "checkpoint": note,
        "entry": None
        if inclusion is None
        else {"seq": seq, "leaf_index": inclusion.leaf_index, "proof": inclusion.proof},
        "earlier": earlier,
        "keys": _keys_until(note, published),
    }


def _keys_until(note: str, published: list[LogKeyView]) -> list[dict[str, Any]]:
    """Return the log's keys up to the newest that signed this: later ones must not change a statement's bytes."""
    signed = {(name, key_id.hex()) for name, key_id, _ in split(note)[1]}
    named = [tuple(key.vkey.split("+")[:2]) in signed for key in published]
    until = max((place for place, has_signed in enumerate(named) if has_signed), default=-1)
    return [{"vkey": key.vkey, "endorsement": key.endorsement} for key in published[: until + 1]]


async def _keys(session: AsyncSession, customer_id: str, used: list[Row]) -> list[dict[str, Any]]:
    """Return how the keys that were used are called. Whether they still may be used is no part of a period."""
    wanted = [row["key_id"] for row in used]
    query = select(ApiKey).where(col(ApiKey.customer_id) == customer_id, col(ApiKey.id).in_(wanted))
    known = {key.id: key for key in (await session.scalars(query)).all()}
    return [
        {"key_id": key.id, "name": key.name, "prefix": prefix_of(key.id), "last4": key.last4}
        for key_id in wanted
        if (key := known.get(key_id)) is not None
    ]


def _instant(value: datetime) -> str:
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
