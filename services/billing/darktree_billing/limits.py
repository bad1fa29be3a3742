"""How many requests each key of a customer may send: what the plan says, unless the customer has limits of their own.

Gateways learn of a change as they learn of a revoked key. Each gateway counts by itself: a limit guards the lanes
against a client that runs wild, it is nothing that is sold. What may be spent is the ledger's to say.
"""

from sqlalchemy.ext.asyncio import AsyncSession

from darktree_billing.customers import find_customer
from darktree_billing.models import Customer
from darktree_billing.plans import Plans
from darktree_billing.schemas import LimitsView, RequestLimits


async def limits_of(session: AsyncSession, plans: Plans, customer_id: str) -> RequestLimits:
    """Return what each of a customer's keys may send; None without a limit. Raises UnknownCustomer."""
    return _in_force(await find_customer(session, customer_id), plans)


async def show_limits(session: AsyncSession, plans: Plans, customer_id: str) -> LimitsView:
    """Return what is in force, and what of it is the customer's own. Raises UnknownCustomer."""
    customer = await find_customer(session, customer_id)
    return LimitsView(
        customer_id=customer.id,
        in_force=_in_force(customer, plans),
        own=RequestLimits(
            requests_per_minute=customer.requests_per_minute, concurrent_requests=customer.concurrent_requests
        ),
        plan=_of_plan(customer, plans),
    )


async def set_limits(
    session: AsyncSession, plans: Plans, customer_id: str, limits: RequestLimits
) -> LimitsView:
    """Give a customer limits of their own: None is what the plan says, 0 no limit. Raises UnknownCustomer."""
    customer = await find_customer(session, customer_id)
    customer.requests_per_minute = limits.requests_per_minute
    customer.concurrent_requests = limits.concurrent_requests
    await session.flush()
    return await show_limits(session, plans, customer_id)


def _in_force(customer: Customer, plans: Plans) -> RequestLimits:
    plan = _of_plan(customer, plans)
    per_minute, at_once = customer.requests_per_minute, customer.concurrent_requests
    return RequestLimits(
        requests_per_minute=(plan.requests_per_minute if per_minute is None else per_minute) or None,
        concurrent_requests=(plan.concurrent_requests if at_once is None else at_once) or None,
    )


def _of_plan(customer: Customer, plans: Plans) -> RequestLimits:
    plan = plans.plan(customer.plan) if customer.plan else None
    if plan is None:
        return RequestLimits()
    return RequestLimits(
        requests_per_minute=plan.requests_per_minute, concurrent_requests=plan.concurrent_requests
    )
