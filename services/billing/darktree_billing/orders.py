"""Orders: what a customer wants to buy, written down with its price before Stripe hears of it."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from darktree_billing.errors import AccountFrozen, TooManyOrders, UnknownOrder, UnknownPlan
from darktree_billing.freezes import locked_customer
from darktree_billing.payment_models import OrderRow, ReversalRow
from darktree_billing.payments_schemas import (
    MAX_OPEN_ORDERS,
    OrderPage,
    OrderState,
    OrderView,
    ReversalKind,
    ReversalPage,
    ReversalView,
)
from darktree_billing.plans import Plans
from darktree_kit import ids
from darktree_kit.errors import BadRequest
from darktree_kit.money import NANOS_PER_CENT

OPEN_FOR = timedelta(days=1)  # how long Stripe keeps a page open


async def create_order(
    session: AsyncSession, plans: Plans, customer_id: str, plan_id: str, by: str
) -> OrderRow:
    """Write an order down. Raises UnknownCustomer, UnknownPlan, AccountFrozen and TooManyOrders."""
    plan = plans.plan(plan_id)
    if plan is None:
        raise UnknownPlan(plan_id, [known.id for known in plans.plans])
    customer = await locked_customer(session, customer_id)  # the lock makes the count exact
    if customer.frozen_at is not None:
        raise AccountFrozen(customer_id)
    unpaid = select(func.count()).where(
        col(OrderRow.customer_id) == customer_id,
        col(OrderRow.state) == "open",
        col(OrderRow.created_at) > func.now() - OPEN_FOR,
    )
    if (await session.scalar(unpaid) or 0) >= MAX_OPEN_ORDERS:
        raise TooManyOrders(customer_id, MAX_OPEN_ORDERS)
    order = OrderRow(
        id=f"ord_{ids.uuid7().hex}",
        customer_id=customer_id,
        plan=plan.id,
        plan_name=plan.display_name,
        price_cents=plan.price_nanos // NANOS_PER_CENT,
        credit_nanos=plan.price_nanos,
        cap_tokens=plan.default_cap_tokens,
        created_by=by,
    )
    session.add(order)
    await session.flush()
    return order


async def list_orders(
    session: AsyncSession,
    customer_id: str | None = None,
    limit: int = 100,
    after: str | None = None,
    state: OrderState | None = None,
) -> OrderPage:
    """Return a page of orders, newest first: everybody's or one customer's, all or those in one state."""
    query = select(OrderRow).order_by(col(OrderRow.id).desc()).limit(limit + 1)  # ids sort by time
    if customer_id is not None:
        query = query.where(col(OrderRow.customer_id) == customer_id)
    if state is not None:
        query = query.where(col(OrderRow.state) == state)
    if after is not None:
        query = query.where(col(OrderRow.id) < after)
    rows = (await session.scalars(query)).all()
    views = await _views(session, rows[:limit])
    return OrderPage(data=views, next=views[-1].id if len(rows) > limit else None)


async def find_order(session: AsyncSession, order_id: str) -> OrderView:
    """Return an order. Raises UnknownOrder."""
    order = await session.get(OrderRow, order_id)
    if order is None:
        raise UnknownOrder(order_id)
    return (await _views(session, [order]))[0]


async def list_reversals(
    session: AsyncSession,
    kind: ReversalKind,
    customer_id: str | None = None,
    limit: int = 100,
    after: str | None = None,
) -> ReversalPage:
    """Return a page of refunds or disputes, newest first. Raises BadRequest when `after` is none of them."""
    place = (col(ReversalRow.created_at), col(ReversalRow.id))
    query = select(ReversalRow).where(col(ReversalRow.kind) == kind)
    if customer_id is not None:
        query = query.where(col(ReversalRow.customer_id) == customer_id)
    if after is not None:
        last = await session.get(ReversalRow, after)
        if last is None or last.kind != kind:
            raise BadRequest("after: not a cursor of this list.", param="after", code="invalid_value")
        earlier = (place[0] < last.created_at) | ((place[0] == last.created_at) & (place[1] < last.id))
        query = query.where(earlier)
    rows = (await session.scalars(query.order_by(place[0].desc(), place[1].desc()).limit(limit + 1))).all()
    views = [reversal_view(row) for row in rows[:limit]]
    return ReversalPage(data=views, next=views[-1].id if len(rows) > limit else None)


async def list_disputes(
    session: AsyncSession, customer_id: str | None = None, limit: int = 100, after: str | None = None
) -> ReversalPage:
    """Return a page of disputes, newest first: everybody's, or one customer's."""
    return await list_reversals(session, "dispute", customer_id, limit, after)


def reversal_view(row: ReversalRow) -> ReversalView:
    """Return a refund or dispute as it is shown."""
    return ReversalView(
        id=row.id,
        kind=row.kind,
        order_id=row.order_id,
        customer_id=row.customer_id,
        amount_cents=row.amount_cents,
        status=row.status,
        reason=row.reason,
        created_at=row.created_at,
        evidence_due_at=row.evidence_due_at,
        is_inquiry=row.is_inquiry,
        taken_cents=row.held_cents,
        returned=row.returned_at is not None,
    )


async def _views(session: AsyncSession, rows: Iterable[OrderRow]) -> list[OrderView]:
    orders = list(rows)
    reversals: dict[str, list[ReversalRow]] = defaultdict(list)
    if orders:
        found = await session.scalars(
            select(ReversalRow)
            .where(col(ReversalRow.order_id).in_([order.id for order in orders]))
            .order_by(col(ReversalRow.created_at), col(ReversalRow.id))
        )
        for row in found:
            reversals[row.order_id].append(row)
    return [_view(order, reversals[order.id]) for order in orders]


def _view(order: OrderRow, reversals: list[ReversalRow]) -> OrderView:
    def held(kind: str) -> int:
        return sum(row.held_cents for row in reversals if row.kind == kind)

    return OrderView(
        **order.model_dump(exclude={"checked_at"}),
        total_cents=order.total_cents if order.granted_at else None,
        refunded_cents=held("refund"),
        disputed_cents=held("dispute"),
        reversals=[reversal_view(row) for row in reversals],
    )
