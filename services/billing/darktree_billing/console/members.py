"""Members: the people of a customer. The first signs the customer up; each may invite others."""

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from darktree_billing.console.models import Member
from darktree_billing.customers import find_customer
from darktree_kit import ids
from darktree_kit.errors import Conflict, NotFound

MAX_MEMBERS = 50


async def member_of_email(session: AsyncSession, email: str) -> Member:
    """Return the member with this address, new when nobody has it; the row is locked until the request ends."""
    row = {"id": f"mem_{ids.uuid7().hex}", "email": email}
    await session.execute(insert(Member).values(row).on_conflict_do_nothing(index_elements=["email"]))
    found = await session.scalar(select(Member).where(col(Member.email) == email).with_for_update())
    assert found is not None
    return found


async def members_of(session: AsyncSession, customer_id: str) -> list[Member]:
    """Return a customer's members, the first one first."""
    query = select(Member).where(col(Member.customer_id) == customer_id)
    return list((await session.scalars(query.order_by(col(Member.created_at), col(Member.id)))).all())


async def invite(session: AsyncSession, customer_id: str, email: str, by: str) -> Member:
    """Make an address a member. Raises Conflict when it is another customer's already, or there are too many."""
    await find_customer(session, customer_id)
    await session.execute(select(func.pg_advisory_xact_lock(func.hashtext(f"members {customer_id}"))))
    if len(await members_of(session, customer_id)) >= MAX_MEMBERS:
        raise Conflict(
            f"At most {MAX_MEMBERS} people can be members.", param="email", code="too_many_members"
        )
    member = await member_of_email(session, email)
    if member.customer_id not in {None, customer_id}:
        raise Conflict(
            "This address belongs to another account already.",
            param="email",
            code="member_of_another_customer",
        )
    if member.customer_id is None:
        member.customer_id, member.invited_by = customer_id, by
    return member


async def remove(session: AsyncSession, customer_id: str, member_id: str) -> Member:
    """Remove a member and end its sessions. Raises NotFound for one that is not of this customer."""
    query = select(Member).where(col(Member.id) == member_id, col(Member.customer_id) == customer_id)
    member = await session.scalar(query.with_for_update())
    if member is None:
        raise NotFound("There is no such member.", code="unknown_member")
    await session.execute(delete(Member).where(col(Member.id) == member_id))
    return member
