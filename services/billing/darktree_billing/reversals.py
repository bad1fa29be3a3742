"""Reversals: what Stripe takes back of a payment, by refund or dispute, and what that takes from the credits.

Stripe's list of a payment's refunds and disputes is worked through in the order in which they began, and each takes
once, and gives back once: whichever event brought us here, the books come out the same. What is taken is split when it
is taken: credits that this purchase gave (of them the ledger takes what is unused, and the house bears the rest), sales
tax that a refund gives back, and what goes beyond the order, which is lost. A dispute returns no tax: it is still owed
(docs/decisions/0015-what-a-dispute-does.md).
"""

from collections.abc import Sequence
from typing import Literal
from uuid import NAMESPACE_URL, UUID, uuid5

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from darktree_billing import accounts
from darktree_billing.freezes import is_frozen, set_frozen
from darktree_billing.models import Customer
from darktree_billing.payment_facts import ReversalFacts
from darktree_billing.payment_models import OrderRow, ReversalRow
from darktree_kit.errors import Conflict
from darktree_kit.money import NANOS_PER_CENT
from darktree_ledger.client import LedgerClient
from darktree_ledger.schemas import ClawBack, Post, Reinstate

ACTOR = "stripe"
USD = "usd"
# How a dispute ends in the customer's favour or ours, so that there is no reason left to keep the keys frozen.
HARMLESS = frozenset({"won", "prevented", "warning_closed"})

_OPERATIONS = uuid5(NAMESPACE_URL, "https://darktree.dev/reversals")


class NeedsPerson(Conflict):
    """Stripe moved money in a way that is not understood here: nothing is booked until a person has looked."""

    code = "needs_a_person"


async def bring_up_to_date(
    session: AsyncSession, ledger: LedgerClient, order: OrderRow, facts: Sequence[ReversalFacts]
) -> None:
    """Take and give back what the ledger has not taken or given back yet. The caller has locked the customer.

    Raises NeedsPerson, and Unavailable while the ledger is away.
    """
    rows = {row.id: row for row in await _rows(session, order)}
    for fact in facts:
        row = rows.get(fact.id)
        if row is None:
            row = rows[fact.id] = _row(order, fact)
            session.add(row)
        row.status, row.reason, row.evidence_due_at = fact.status, fact.reason, fact.evidence_due_at
        if fact.taken_cents and not row.is_held:
            await _take(session, ledger, order, list(rows.values()), row, fact)
        elif row.is_held and fact.taken_cents != row.held_cents:
            await _give_back(session, ledger, order, row, fact)
    await session.flush()
    await _freeze_or_let_go(
        session, order.customer_id, [row for row in rows.values() if row.kind == "dispute"]
    )


def split(order: OrderRow, held: Sequence[ReversalRow], kind: str, amount_cents: int) -> tuple[int, int, int]:
    """Return how much of an amount are credits, how much is tax, and how much is more than was bought.

    `held` are the order's other reversals as far as they hold anything. Over all refunds the tax is the total's share,
    rounded once: what was refunded whole has returned exactly the tax that was collected.
    """
    held_credit = sum(row.credit_cents or 0 for row in held)
    held_tax = sum(row.tax_cents or 0 for row in held)
    share_cents = amount_cents * order.tax_cents // order.total_cents
    if kind == "refund":
        refunded = sum(row.held_cents for row in held if row.kind == "refund") + amount_cents
        share_cents = min(refunded, order.total_cents) * order.tax_cents // order.total_cents - held_tax
    tax = max(0, min(share_cents, amount_cents, order.tax_cents - held_tax))
    credit = min(amount_cents - tax, order.price_cents - held_credit)
    if kind == "dispute":
        tax = 0
    return credit, tax, amount_cents - credit - tax


async def _rows(session: AsyncSession, order: OrderRow) -> Sequence[ReversalRow]:
    return (await session.scalars(select(ReversalRow).where(col(ReversalRow.order_id) == order.id))).all()


def _row(order: OrderRow, fact: ReversalFacts) -> ReversalRow:
    return ReversalRow(
        id=fact.id,
        kind=fact.kind,
        order_id=order.id,
        customer_id=order.customer_id,
        amount_cents=fact.amount_cents,
        status=fact.status,
        created_at=fact.created_at,
    )


async def _take(
    session: AsyncSession,
    ledger: LedgerClient,
    order: OrderRow,
    rows: Sequence[ReversalRow],
    row: ReversalRow,
    fact: ReversalFacts,
) -> None:
    if fact.currency != USD:
        raise NeedsPerson(f"{fact.id} is in {fact.currency}, and the books are in dollars.")
    if row.returned_at is not None:
        raise NeedsPerson(f"{fact.id} takes again what it had given back.")
    held = [other for other in rows if other.is_held and other.id != row.id]
    credit, tax, lost = split(order, held, fact.kind, fact.taken_cents)
    if credit:
        assert order.grant_id is not None
        await accounts.apply(
            ledger,
            ClawBack(
                operation_id=_operation_id(row, "take"),
                customer_id=order.customer_id,
                purchase_id=order.grant_id,
                amount_nanos=credit * NANOS_PER_CENT,
                cause="refund" if row.kind == "refund" else "dispute",
                reason=_reason(row, order),
                actor=ACTOR,
                reference=row.id,
            ),
        )
    await _post(ledger, order, row, "take/tax", "sales_tax_payable", tax)
    await _post(ledger, order, row, "take/lost", _loss(row), lost)
    now = await session.scalar(select(func.clock_timestamp()))
    row.credit_cents, row.tax_cents, row.lost_cents, row.taken_at = credit, tax, lost, now


async def _give_back(
    session: AsyncSession, ledger: LedgerClient, order: OrderRow, row: ReversalRow, fact: ReversalFacts
) -> None:
    if fact.taken_cents:
        raise NeedsPerson(
            f"{fact.id} had taken {row.held_cents} cents and now holds {fact.taken_cents}: a part was given back."
        )
    if row.credit_cents:
        await accounts.apply(
            ledger,
            Reinstate(
                operation_id=_operation_id(row, "return"),
                customer_id=order.customer_id,
                claw_back_id=_operation_id(row, "take"),
                reason=f"{_reason(row, order)}: given back, {fact.status}",
                actor=ACTOR,
                reference=row.id,
            ),
        )
    await _post(ledger, order, row, "return/tax", "sales_tax_payable", -(row.tax_cents or 0))
    await _post(ledger, order, row, "return/lost", _loss(row), -(row.lost_cents or 0))
    row.returned_at = await session.scalar(select(func.clock_timestamp()))


async def _post(
    ledger: LedgerClient,
    order: OrderRow,
    row: ReversalRow,
    step: str,
    account: Literal["sales_tax_payable", "refunds", "disputes"],
    cents: int,
) -> None:
    """Book what leaves the money at Stripe for an account; less than nothing comes back from it."""
    if not cents:
        return
    await accounts.apply(
        ledger,
        Post(
            operation_id=_operation_id(row, step),
            customer_id=order.customer_id,
            debit_account=account if cents > 0 else "stripe_clearing",
            credit_account="stripe_clearing" if cents > 0 else account,
            amount_nanos=abs(cents) * NANOS_PER_CENT,
            reason=_reason(row, order),
            actor=ACTOR,
            reference=row.id,
        ),
    )


async def _freeze_or_let_go(session: AsyncSession, customer_id: str, disputes: Sequence[ReversalRow]) -> None:
    """Freeze for each dispute once, so that a person may let go; let go when no dispute is left that speaks for it."""
    for row in disputes:
        if row.froze_at is None and not row.is_inquiry and row.status not in HARMLESS:
            await set_frozen(session, customer_id, True, f"Payment disputed: {row.id}", ACTOR)
            row.froze_at = await session.scalar(select(func.clock_timestamp()))
    await session.flush()
    if not any(row.froze_at and row.status in HARMLESS for row in disputes):
        return
    frozen_by = await session.scalar(select(col(Customer.frozen_by)).where(col(Customer.id) == customer_id))
    still = select(func.count()).where(
        col(ReversalRow.customer_id) == customer_id,
        col(ReversalRow.froze_at).is_not(None),
        col(ReversalRow.status).not_in(HARMLESS),
    )
    if frozen_by == ACTOR and await is_frozen(session, customer_id) and not await session.scalar(still):
        await set_frozen(session, customer_id, False, "No payment is disputed any more", ACTOR)


def _operation_id(row: ReversalRow, step: str) -> UUID:
    return uuid5(_OPERATIONS, f"{row.id}/{step}")


def _reason(row: ReversalRow, order: OrderRow) -> str:
    return f"{'Refund' if row.kind == 'refund' else 'Dispute'} {row.id} of {order.id}"


def _loss(row: ReversalRow) -> Literal["refunds", "disputes"]:
    return "refunds" if row.kind == "refund" else "disputes"
