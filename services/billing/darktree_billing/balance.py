"""Stripe's balance, as billing keeps it: imported balance transactions, each in the books of one month.

A transaction belongs to the first month, from the one in which Stripe made it, that is still open. Importing it again
changes nothing; Stripe may only add what its other file did not say, or what it did not know before (the payout). Its
fee, and what it pays out to the bank, are posted to the ledger with ids that follow from Stripe's, so that a repetition
posts nothing twice.
"""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from uuid import NAMESPACE_URL, UUID, uuid5

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from darktree_billing import accounts
from darktree_billing.balance_report import PAYOUT, BalanceTransaction
from darktree_billing.clearing import (
    IMPORT_ACTOR,
    USD,
    BookedBalance,
    PayoutSplit,
    StripeRow,
    stripe_movements,
)
from darktree_billing.close_schemas import ImportedBalance
from darktree_billing.errors import BalanceTransactionDiffers
from darktree_billing.models import BalanceRow, BookedMonth
from darktree_billing.months import Month
from darktree_ledger.client import LedgerClient
from darktree_ledger.schemas import Post

LOCK_KEY = (
    0x64_74_62_6B  # "dtbk": an import and a close never overlap, so a month's transactions are a fixed set
)
MAX_IDS_PER_QUERY = 1_000
MAX_POSTS_AT_ONCE = 500
_FIXED = ("category", "amount_cents", "fee_cents", "net_cents", "currency")
_LEARNED = ("available_on", "source", "payout")
_POSTINGS = uuid5(NAMESPACE_URL, "https://darktree.dev/balance-transactions")


async def lock_books(session: AsyncSession) -> None:
    """Let this transaction alone import or close, until it ends."""
    await session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})


async def newest_closed(session: AsyncSession) -> Month | None:
    month = await session.scalar(select(func.max(col(BookedMonth.month))))
    return Month.parse(month) if month else None


async def import_transactions(
    session: AsyncSession, ledger: LedgerClient, transactions: Sequence[BalanceTransaction]
) -> ImportedBalance:
    """Take transactions in, and post their fees and payouts. Raises BalanceTransactionDiffers naming the field."""
    await lock_books(session)
    closed = await newest_closed(session)
    first_open = closed.next if closed else Month(2000, 1)
    known = await _known(session, [transaction.id for transaction in transactions])
    added: list[BalanceRow] = []
    learned = 0
    for transaction in transactions:
        row = known.get(transaction.id)
        if row is not None:
            learned += _learn(row, transaction, first_open)
            continue
        month = max(Month.of(transaction.created), first_open)
        row = BalanceRow(
            **transaction.model_dump(),
            category=transaction.category,
            book_month=str(month),
            payout_month=str(month) if transaction.payout else None,
        )
        known[row.id] = row
        added.append(row)
    session.add_all(added)
    await session.flush()
    posts = [post for row in added for post in _posts(_stripe_row(row))]
    # Posted before it is committed here: a repetition of what was cut off posts the same once more, which is nothing.
    for start in range(0, len(posts), MAX_POSTS_AT_ONCE):
        await asyncio.gather(
            *(accounts.post(ledger, body) for body in posts[start : start + MAX_POSTS_AT_ONCE])
        )
    months = sorted({row.book_month for row in added})
    return ImportedBalance(
        imported=len(added),
        known_before=len(transactions) - len(added),
        learned=learned,
        posted=len(posts),
        months=months,
    )


async def booked(session: AsyncSession, month: Month, after: Month | None) -> BookedBalance:
    """Return what belongs to a month's books; `after` is the month that was closed before it."""
    before = str(after) if after else ""
    opening = await session.scalar(
        select(func.coalesce(func.sum(BalanceRow.net_cents), 0)).where(
            col(BalanceRow.book_month) <= before, col(BalanceRow.currency) == USD
        )
    )
    rows = await session.scalars(
        select(BalanceRow)
        .where(col(BalanceRow.book_month) > before, col(BalanceRow.book_month) <= str(month))
        .order_by(col(BalanceRow.created), col(BalanceRow.id))
    )
    return BookedBalance(int(opening or 0), [_stripe_row(row) for row in rows], await _splits(session, month))


async def _known(session: AsyncSession, ids: Sequence[str]) -> dict[str, BalanceRow]:
    found: dict[str, BalanceRow] = {}
    for start in range(0, len(ids), MAX_IDS_PER_QUERY):
        some = ids[start : start + MAX_IDS_PER_QUERY]
        rows = await session.scalars(select(BalanceRow).where(col(BalanceRow.id).in_(some)))
        found |= {row.id: row for row in rows}
    return found


def _learn(row: BalanceRow, transaction: BalanceTransaction, first_open: Month) -> bool:
    """Compare a repetition with what is known, and add what another file, or a later one, says beyond it."""
    for field in _FIXED:
        if getattr(row, field) != getattr(transaction, field):
            raise BalanceTransactionDiffers(row.id, field)
    if abs(row.created - transaction.created) >= timedelta(
        minutes=1
    ):  # the Dashboard's export has no seconds
        raise BalanceTransactionDiffers(row.id, "created")
    before = row.model_dump()
    for field in _LEARNED:
        old, new = getattr(row, field), getattr(transaction, field)
        if old is not None and new is not None and old != new:
            raise BalanceTransactionDiffers(row.id, field)
        setattr(row, field, old if old is not None else new)
    if row.payout is not None and row.payout_month is None:
        row.payout_month = str(max(Month.parse(row.book_month), first_open))
    if Month.parse(row.book_month) >= first_open and not set(transaction.known_as) <= set(row.known_as):
        row.known_as = sorted({*row.known_as, *transaction.known_as})
    return row.model_dump() != before


def _posts(row: StripeRow) -> list[Post]:
    names = {"FEE": "Fee of", "PAY": "Payout of"}
    return [
        Post(
            operation_id=_operation_id(row.id, moved.code, place),
            debit_account=moved.debit,  # type: ignore[arg-type]
            credit_account=moved.credit,  # type: ignore[arg-type]
            amount_nanos=moved.amount_nanos,
            occurred_on=row.day,
            reason=f"{names[moved.code]} {row.id}",
            actor=IMPORT_ACTOR,
            reference=row.id[:128],
        )
        for place, moved in enumerate(stripe_movements([row]))
    ]


def _operation_id(transaction_id: str, code: str, place: int) -> UUID:
    return uuid5(_POSTINGS, f"{transaction_id}/{code}/{place}")


def _stripe_row(row: BalanceRow) -> StripeRow:
    return StripeRow(
        id=row.id,
        category=row.category,
        amount_cents=row.amount_cents,
        fee_cents=row.fee_cents,
        net_cents=row.net_cents,
        currency=row.currency,
        day=row.created.date(),
        known_as=tuple(row.known_as),
        description=row.description or "",
    )


async def _splits(session: AsyncSession, month: Month) -> list[PayoutSplit]:
    """Return the payouts that are not the sum of their items, as was known when this month was open."""
    items = (
        select(col(BalanceRow.payout), func.sum(BalanceRow.net_cents).label("items_cents"))
        .where(col(BalanceRow.payout_month) <= str(month), col(BalanceRow.book_month) <= str(month))
        .where(col(BalanceRow.category) != PAYOUT, col(BalanceRow.currency) == USD)
        .group_by(col(BalanceRow.payout))
        .subquery()
    )
    payouts = (
        select(
            col(BalanceRow.source),
            func.min(BalanceRow.created).label("created"),
            (-func.sum(BalanceRow.amount_cents)).label("paid_cents"),
        )
        .where(col(BalanceRow.category) == PAYOUT, col(BalanceRow.book_month) <= str(month))
        .where(col(BalanceRow.currency) == USD)
        .group_by(col(BalanceRow.source))
        .subquery()
    )
    found = await session.execute(
        select(payouts.c.source, payouts.c.created, payouts.c.paid_cents, items.c.items_cents)
        .join(items, items.c.payout == payouts.c.source)
        .where(payouts.c.paid_cents != items.c.items_cents)
        .order_by(payouts.c.created, payouts.c.source)
    )
    return [
        PayoutSplit(source, created.date(), int(paid), int(sum_)) for source, created, paid, sum_ in found
    ]
