"""Checkout: from a plan to a page at Stripe on which it can be paid.

The order is committed before Stripe is asked, and its id is the idempotency key and the session's reference: whatever
Stripe tells later can be held against what was ordered.
"""

from dataclasses import dataclass
from urllib.parse import urlencode

from sqlalchemy import update
from sqlmodel import col

from darktree_billing.customers import find_customer
from darktree_billing.orders import create_order
from darktree_billing.payment_facts import Sale
from darktree_billing.payment_models import OrderRow
from darktree_billing.payments import Payments
from darktree_billing.payments_schemas import Checkout
from darktree_billing.plans import Plans
from darktree_kit.db import Database
from darktree_kit.errors import ApiError

PAID_PATH = "/console/buy/return"  # with ?order=<id>: Stripe sends the customer there after paying
LEFT_PATH = "/console/buy"


@dataclass(frozen=True)
class Seller:
    """Who sells, and where customers come back to: the console's own address."""

    name: str
    console: str

    def paid_url(self, order_id: str) -> str:
        return f"{self.console}{PAID_PATH}?{urlencode({'order': order_id})}"


async def begin_checkout(
    database: Database,
    payments: Payments,
    plans: Plans,
    seller: Seller,
    customer_id: str,
    plan_id: str,
    by: str,
) -> Checkout:
    """Order a plan's bundle and return where to pay it. In transactions of its own: see above.

    Raises UnknownCustomer, UnknownPlan, AccountFrozen, TooManyOrders; StripeUnavailable and StripeRefused, after
    which the order stays unpaid.
    """
    async with database.sessions.begin() as session:
        order = await create_order(session, plans, customer_id, plan_id, by)
        email = (await find_customer(session, customer_id)).email
    plan = plans.plan(plan_id)
    assert plan is not None
    sale = Sale(
        order_id=order.id,
        customer_id=customer_id,
        email=email,
        name=f"{seller.name} {order.plan_name}",
        price_cents=order.price_cents,
        stripe_price_id=plan.stripe_price_id,
        paid_url=seller.paid_url(order.id),
        left_url=seller.console + LEFT_PATH,
    )
    try:
        session_id, url = await payments.create_session(sale)
    except ApiError as error:
        await _note(database, order.id, problem=error.message)
        raise
    await _note(database, order.id, session_id=session_id)
    return Checkout(order_id=order.id, url=url)


async def _note(database: Database, order_id: str, **values: str) -> None:
    async with database.sessions.begin() as session:
        await session.execute(update(OrderRow).where(col(OrderRow.id) == order_id).values(values))
