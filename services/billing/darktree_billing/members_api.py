"""Members over HTTP: who may sign in to a customer's console. The console's own pages do the same for its members."""

from typing import Annotated

from fastapi import APIRouter, Path

from darktree_billing import admin
from darktree_billing.accounts import ACTOR
from darktree_billing.admin import CustomerIdInPath
from darktree_billing.console import members
from darktree_billing.console.addresses import normal_email
from darktree_billing.customers import find_customer
from darktree_billing.schemas import InviteMember, MemberList, MemberView
from darktree_kit.db import Session
from darktree_kit.errors import BadRequest
from darktree_kit.openapi import refusals

MemberId = Annotated[str, Path(pattern=r"^mem_[0-9a-f]{32}$")]

router = APIRouter(
    prefix="/admin/customers/{customer_id}/members",
    tags=["admin"],
    dependencies=admin.router.dependencies,
    responses=admin.router.responses,
)


@router.get("", responses=refusals(400, 404))
async def list_members(customer_id: CustomerIdInPath, session: Session) -> MemberList:
    """List who may sign in to the customer's console, the first member first."""
    await find_customer(session, customer_id)
    found = await members.members_of(session, customer_id)
    return MemberList(data=[MemberView.model_validate(member, from_attributes=True) for member in found])


@router.post("", responses=refusals(400, 404, 409))
async def invite_member(customer_id: CustomerIdInPath, body: InviteMember, session: Session) -> MemberView:
    """Let an e-mail address sign in to the customer's console; nothing is mailed. Repeating it changes nothing."""
    email = normal_email(body.email)
    if email is None:
        raise BadRequest("That is not an e-mail address.", param="email")
    member = await members.invite(session, customer_id, email, by=ACTOR)
    await session.flush()
    await session.refresh(member)
    return MemberView.model_validate(member, from_attributes=True)


@router.delete("/{member_id}", responses=refusals(400, 404))
async def remove_member(customer_id: CustomerIdInPath, member_id: MemberId, session: Session) -> MemberView:
    """Remove a member and end its sessions."""
    removed = await members.remove(session, customer_id, member_id)
    return MemberView.model_validate(removed, from_attributes=True)
