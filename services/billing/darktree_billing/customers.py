"""Customers: who buys, on which plan. A customer without an account in the ledger never exists."""

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from darktree_billing import accounts
from darktree_billing.errors import CustomerExists, UnknownCustomer, UnknownPlan
from darktree_billing.models import Customer
from darktree_billing.plans import Plans
from darktree_billing.schemas import CreateCustomer, CustomerPage, CustomerView
from darktree_kit import ids
from darktree_ledger.client import LedgerClient


async def create_customer(
    session: AsyncSession, ledger: LedgerClient, plans: Plans, body: CreateCustomer
) -> tuple[CustomerView, bool]:
    """Make a customer and its account; the second value tells whether it is new.

    The row goes in first, uncommitted, so that of two callers with one id the second waits for the first.
    Then the account is opened, then the request's transaction commits. If that fails, an account without a
    customer is left, which a repetition takes up. Raises UnknownPlan, and CustomerExists with the field.
    """
    customer_id = body.id or f"cus_{ids.uuid7().hex}"
    if (existing := await session.get(Customer, customer_id)) is not None:
        return _same(existing, body), False
    plan = plans.plan(body.plan)
    if plan is None:
        raise UnknownPlan(body.plan, [known.id for known in plans.plans])
    row = {"id": customer_id, "name": body.name, "email": body.email, "plan": body.plan}
    inserted = await session.scalar(insert(Customer).values(row).on_conflict_do_nothing().returning(Customer))
    if inserted is None:
        return _same(await find_customer(session, customer_id), body), False
    await accounts.open_account(ledger, customer_id, plan.default_cap_tokens)
    return _view(inserted), True


async def sign_up(session: AsyncSession, ledger: LedgerClient, name: str, email: str) -> Customer:
    """Make a customer who has bought nothing yet: no plan, no credits, and a cap of nothing."""
    customer = Customer(id=f"cus_{ids.uuid7().hex}", name=name, email=email, plan=None)
    session.add(customer)
    await session.flush()
    await accounts.open_account(ledger, customer.id, 0, actor=email)
    return customer


async def find_customer(session: AsyncSession, customer_id: str) -> Customer:
    """Return a customer. Raises UnknownCustomer."""
    customer = await session.get(Customer, customer_id)
    if customer is None:
        raise UnknownCustomer(customer_id)
    return customer


async def show_customer(session: AsyncSession, customer_id: str) -> CustomerView:
    return _view(await find_customer(session, customer_id))


async def list_customers(session: AsyncSession, limit: int, after: str | None) -> CustomerPage:
    """Return a page of customers in order of their ids; `after` is any id, even one that is no customer's."""
    query = select(Customer).order_by(col(Customer.id)).limit(limit + 1)
    if after is not None:
        query = query.where(col(Customer.id) > after)
    rows = (await session.scalars(query)).all()
    page = [_view(customer) for customer in rows[:limit]]
    return CustomerPage(data=page, next=page[-1].id if len(rows) > limit else None)


async def count_customers(session: AsyncSession) -> int:
    return await session.scalar(select(func.count()).select_from(Customer)) or 0


def _same(customer: Customer, body: CreateCustomer) -> CustomerView:
    for field in ("name", "email", "plan"):
        if getattr(customer, field) != getattr(body, field):
            raise CustomerExists(customer.id, field)
    return _view(customer)


def _view(customer: Customer) -> CustomerView:
    return CustomerView(
        id=customer.id,
        name=customer.name,
        email=customer.email,
        plan=customer.plan,
        created_at=customer.created_at,
    )
