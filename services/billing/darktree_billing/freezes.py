"""Freezes: a customer whose keys are refused, because a payment is disputed or because a person says so.

Gateways learn of it as they learn of a revoked key: within the age of their caches.
"""

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from darktree_billing.errors import UnknownCustomer
from darktree_billing.models import Customer
from darktree_billing.payment_models import FreezeRow
from darktree_billing.payments_schemas import FreezeChange, FreezeView

MAX_CHANGES_SHOWN = 100


async def is_frozen(session: AsyncSession, customer_id: str) -> bool:
    """Tell whether a customer's keys are refused now."""
    frozen_at = await session.scalar(select(col(Customer.frozen_at)).where(col(Customer.id) == customer_id))
    return frozen_at is not None


async def set_frozen(
    session: AsyncSession, customer_id: str, frozen: bool, reason: str, by: str
) -> FreezeView:
    """Freeze a customer or let them go; what is so already stays as it is. Raises UnknownCustomer."""
    customer = await locked_customer(session, customer_id)
    if (customer.frozen_at is not None) != frozen:
        now = (await session.execute(select(func.clock_timestamp()))).scalar_one()
        customer.frozen_at, customer.frozen_by, customer.frozen_reason = (
            (now, by, reason) if frozen else (None, None, None)
        )
        session.add(
            FreezeRow(customer_id=customer_id, frozen=frozen, reason=reason, actor=by, changed_at=now)
        )
        await session.flush()
    return await freeze_view(session, customer_id)


async def freeze_view(session: AsyncSession, customer_id: str) -> FreezeView:
    """Return whether a customer is frozen, and what happened before."""
    rows = await session.scalars(
        select(FreezeRow)
        .where(col(FreezeRow.customer_id) == customer_id)
        .order_by(col(FreezeRow.id).desc())
        .limit(MAX_CHANGES_SHOWN)
    )
    return FreezeView(
        customer_id=customer_id,
        frozen=await is_frozen(session, customer_id),
        changes=[
            FreezeChange(frozen=row.frozen, reason=row.reason, by=row.actor, at=row.changed_at)
            for row in rows
        ],
    )


async def locked_customer(session: AsyncSession, customer_id: str) -> Customer:
    """Return a customer whose payments, cap and freeze nobody else changes until this transaction ends."""
    customer = await session.get(
        Customer, customer_id, with_for_update={"key_share": True}, populate_existing=True
    )
    if customer is None:
        raise UnknownCustomer(customer_id)
    return customer
