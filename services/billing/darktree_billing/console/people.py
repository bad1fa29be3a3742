"""Members: who may sign in to the account, invitations, and leaving."""

from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from darktree_billing.console import members
from darktree_billing.console.addresses import normal_email
from darktree_billing.console.sessions import SignedIn
from darktree_billing.console.shell import TheForm, TheMember, redirect, render
from darktree_billing.console.sign_in import mail_link
from darktree_kit.db import Session
from darktree_kit.errors import Conflict

router = APIRouter(include_in_schema=False)


@router.get("/console/members")
async def list_members(request: Request, me: TheMember, session: Session) -> Response:
    return await _page(request, me, session)


@router.post("/console/members")
async def invite(request: Request, me: TheMember, form: TheForm, session: Session) -> Response:
    typed = form.text("email")
    email = normal_email(typed)
    if email is None:
        return await _page(request, me, session, typed=typed, problem="That is not an e-mail address.")
    try:
        await members.invite(session, me.customer_id, email, by=me.email)
    except Conflict as error:
        return await _page(request, me, session, typed=typed, problem=error.message)
    await mail_link(request, session, email, "", f"{me.customer_name} invites you to")
    return redirect(request, "/console/members", f"We mailed {email} a link to sign in.")


@router.post("/console/members/{member_id}/remove")
async def remove(
    member_id: Annotated[str, Path(pattern=r"^mem_[0-9a-f]{32}$")],
    request: Request,
    me: TheMember,
    _: TheForm,
    session: Session,
) -> Response:
    if member_id == me.member_id:
        raise Conflict("You cannot remove yourself; another member can.", code="yourself")
    removed = await members.remove(session, me.customer_id, member_id)
    return redirect(request, "/console/members", f"{removed.email} can no longer sign in to this account.")


async def _page(
    request: Request, me: SignedIn, session: Session, *, typed: str = "", problem: str | None = None
) -> Response:
    found = await members.members_of(session, me.customer_id)
    values = {"members": found, "typed": typed, "problem": problem}
    return render(request, "members.html", values, status=200 if problem is None else 400)
