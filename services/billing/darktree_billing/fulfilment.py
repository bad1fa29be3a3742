"""Fulfilment: an order is brought to where its payment stands at Stripe, by whoever looks, as often as they like.

Nothing here believes an event. The payment is fetched while the customer's row is locked, and the ledger gets what it
does not have yet: so webhook, return page and sweep may come in any order, together or never, and the credits are
granted once. The grant's id follows from the Checkout Session's, and the ledger applies an id once
(docs/decisions/0014-an-order-is-brought-to-where-its-payment-stands.md).
"""

import asyncio
import logging
from dataclasses import dataclass, field
from uuid import NAMESPACE_URL, UUID, uuid5

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from darktree_billing import accounts, reversals
from darktree_billing.errors import UnknownOrder
from darktree_billing.freezes import locked_customer
from darktree_billing.models import Customer
from darktree_billing.orders import find_order
from darktree_billing.payment_facts import SessionFacts
from darktree_billing.payment_models import OrderRow
from darktree_billing.payments import Payments
from darktree_billing.payments_schemas import OrderState, OrderView
from darktree_billing.schemas import CapChange, SetCap
from darktree_kit.db import Database
from darktree_kit.errors import ApiError
from darktree_kit.money import NANOS_PER_CENT
from darktree_ledger.client import LedgerClient
from darktree_ledger.schemas import Grant, Post

ACTOR = "stripe"  # who grants, and who raises caps, because something was bought
USD = "usd"
MAX_LOOKS = 4  # pages at once that ask Stripe; others show what is known
LOOK_SECONDS = 5.0

_log = logging.getLogger(__name__)
_OPERATIONS = uuid5(NAMESPACE_URL, "https://darktree.dev/checkout-sessions")


@dataclass(frozen=True)
class Shop:
    """What fulfilling an order needs."""

    database: Database
    ledger: LedgerClient
    payments: Payments
    looks: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_LOOKS))


async def fulfil(shop: Shop, order_id: str, session_id: str | None = None) -> OrderView:
    """Bring an order to where its payment stands, and return it. `session_id` is the session that names the order.

    Raises UnknownOrder, StripeUnavailable, and Unavailable while the ledger is away: then nothing, or something that
    a repetition completes, was done.
    """
    async with shop.database.sessions.begin() as session:
        await _bring_up_to_date(session, shop, await _locked(session, order_id), session_id)
        return await find_order(session, order_id)


async def look(shop: Shop, order_id: str) -> OrderView:
    """As `fulfil`, for a page that somebody looks at: where that would have to wait, return the order as it is.

    Raises UnknownOrder. The page asks again, and the webhook or the sweep does what could not be done here.
    """
    if not shop.looks.locked():
        try:
            async with shop.looks, asyncio.timeout(LOOK_SECONDS):
                await _try(shop, order_id)
        except (TimeoutError, ApiError) as error:
            _log.warning(
                "an order could not be looked at", extra={"order": order_id, "error": str(error)[:200]}
            )
    async with shop.database.sessions.begin() as session:
        return await find_order(session, order_id)


async def _try(shop: Shop, order_id: str) -> None:
    async with shop.database.sessions.begin() as session:
        free = select(OrderRow).where(col(OrderRow.id) == order_id)
        order = await session.scalar(free.with_for_update(skip_locked=True, key_share=True))
        if order is not None and order.state != "paid":
            # The customer's row comes first everywhere else; here it must not be waited for.
            owner = select(Customer).where(col(Customer.id) == order.customer_id)
            if await session.scalar(owner.with_for_update(skip_locked=True, key_share=True)) is not None:
                await _bring_up_to_date(session, shop, order, None)


def grant_id(session_id: str) -> UUID:
    """Return the id of the operation that grants what a Checkout Session paid for."""
    return uuid5(_OPERATIONS, session_id)


def state_of(order: OrderRow, facts: SessionFacts) -> tuple[OrderState, str | None]:
    """Return what a Checkout Session makes of its order, and why when that is not what anybody wanted."""
    if facts.status == "expired":
        return "expired", None
    if facts.status == "open":
        return "open", None
    if facts.payment_status == "unpaid":
        if facts.intent_status in {"requires_payment_method", "canceled"}:
            return "failed", f"The payment failed: {facts.failure or facts.intent_status}."
        return "processing", None
    wrong = _wrong(order, facts)
    return ("review", f"Paid, but not as ordered: {wrong}.") if wrong else ("paid", None)


async def _locked(session: AsyncSession, order_id: str) -> OrderRow:
    """Return an order; until the transaction ends, nobody else works on its customer's payments."""
    customer_id = await session.scalar(select(col(OrderRow.customer_id)).where(col(OrderRow.id) == order_id))
    if customer_id is None:
        raise UnknownOrder(order_id)
    await locked_customer(session, customer_id)
    order = await session.get(OrderRow, order_id, with_for_update={"key_share": True}, populate_existing=True)
    assert order is not None  # orders are never deleted
    return order


async def _bring_up_to_date(
    session: AsyncSession, shop: Shop, order: OrderRow, session_id: str | None
) -> None:
    if order.state != "paid":
        known = order.session_id or session_id
        if known is None:
            return  # Stripe was never heard to have made a session, and nobody got its address
        await _look_at_session(session, shop, order, await shop.payments.session(known))
    if order.state == "paid":
        assert order.payment_intent_id is not None
        taken_back = await shop.payments.reversals(order.payment_intent_id)
        await reversals.bring_up_to_date(session, shop.ledger, order, taken_back)
    order.checked_at = await session.scalar(select(func.clock_timestamp()))
    await session.flush()


async def _look_at_session(session: AsyncSession, shop: Shop, order: OrderRow, facts: SessionFacts) -> None:
    state, problem = state_of(order, facts)
    if facts.order_id == order.id and order.session_id is None:
        order.session_id = facts.id
    order.problem = problem
    if state != "paid":
        order.state = state
        await session.flush()
        return
    order.payment_intent_id = facts.payment_intent_id
    order.charge_id = facts.charge_id
    order.receipt_url = facts.receipt_url
    order.tax_cents = facts.tax_cents
    await _grant(shop.ledger, order, facts)
    is_raised = await _raise_cap(shop.ledger, order, facts.id)
    customer = await session.get_one(Customer, order.customer_id)
    if is_raised or customer.plan is None:
        customer.plan = order.plan
    now = await session.scalar(select(func.clock_timestamp()))
    order.state, order.grant_id, order.granted_at = state, grant_id(facts.id), now
    await session.flush()


def _wrong(order: OrderRow, facts: SessionFacts) -> str | None:
    """Return what of a paid session is not what was ordered."""
    checks = (
        (facts.order_id, order.id, "the order that it names"),
        (facts.id, order.session_id or facts.id, "its session"),
        (facts.payment_status, "paid", "its payment's status"),
        (facts.intent_status, "succeeded", "its payment intent's status"),
        (facts.currency, USD, "its currency"),
        (facts.subtotal_cents, order.price_cents, "its price in cents"),
        (facts.total_cents, order.price_cents + facts.tax_cents, "its total in cents"),
        (facts.received_cents, facts.total_cents, "what was received in cents"),
    )
    for found, expected, what in checks:
        if found != expected:
            return f"{what} is {found}, not {expected}"
    return None if facts.charge_id else "it has no charge"


async def _grant(ledger: LedgerClient, order: OrderRow, facts: SessionFacts) -> None:
    """Give the credits that were paid for; tax that was collected is owed to others and is none."""
    await accounts.apply(
        ledger,
        Grant(
            operation_id=grant_id(facts.id),
            customer_id=order.customer_id,
            amount_nanos=order.credit_nanos,
            source="purchase",
            reason=f"Bought {order.plan_name}: {order.id}",
            actor=ACTOR,
            reference=facts.charge_id,
        ),
    )
    if facts.tax_cents:
        await accounts.apply(
            ledger,
            Post(
                operation_id=uuid5(_OPERATIONS, f"{facts.id}/tax"),
                customer_id=order.customer_id,
                debit_account="stripe_clearing",
                credit_account="sales_tax_payable",
                amount_nanos=facts.tax_cents * NANOS_PER_CENT,
                reason=f"Sales tax of {order.id}",
                actor=ACTOR,
                reference=facts.charge_id,
            ),
        )


async def _raise_cap(ledger: LedgerClient, order: OrderRow, session_id: str) -> bool:
    """Give the plan's default cap, unless the customer's is as high already or a person has set it."""
    cap = await accounts.cap(ledger, order.customer_id)
    if not may_raise(cap.cap_tokens, cap.changes, order.cap_tokens):
        return cap.cap_tokens == order.cap_tokens and bool(cap.changes) and cap.changes[0].actor == ACTOR
    await accounts.change_cap(
        ledger,
        order.customer_id,
        SetCap(
            cap_tokens=order.cap_tokens,
            reason=f"bought {order.plan_name}: {order.id}",
            operation_id=uuid5(_OPERATIONS, f"{session_id}/cap"),
        ),
        actor=ACTOR,
    )
    return True


def may_raise(cap_tokens: int, changes: list[CapChange], plan_cap_tokens: int) -> bool:
    """Tell whether a purchase may set this plan's cap. `changes` are the newest first; what a person set stays."""
    is_ours = not changes or changes[0].previous_cap_tokens is None or changes[0].actor == ACTOR
    return is_ours and plan_cap_tokens > cap_tokens
