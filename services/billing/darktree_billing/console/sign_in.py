"""Signing in and out: an address, a mail with a link, a button that uses it. Whoever is new signs up on the way."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from darktree_billing import customers
from darktree_billing.console import links, members, sessions
from darktree_billing.console.addresses import normal_email
from darktree_billing.console.errors import LinkExpired
from darktree_billing.console.links import AddressLimit
from darktree_billing.console.mail import Post
from darktree_billing.console.shell import (
    CUSTOMER_HOME,
    SIGN_IN,
    TEAM_HOME,
    WELCOME,
    MaybeSignedIn,
    TheForm,
    TheSignedIn,
    cookie_of,
    local_path,
    public_address,
    read_form,
    redirect,
    render,
)
from darktree_billing.state import TheLedger
from darktree_kit import clock
from darktree_kit.db import Session

MAX_NAME_CHARACTERS = 128

Next = Annotated[str | None, Query(max_length=500)]
router = APIRouter(include_in_schema=False)


@router.get(SIGN_IN)
async def ask_for_address(request: Request, me: MaybeSignedIn, next: Next = None) -> Response:
    if me is not None:
        return RedirectResponse(local_path(next) or CUSTOMER_HOME, 303)
    return render(request, "sign_in.html", {"next": local_path(next), "email": "", "problem": None})


@router.post(SIGN_IN)
async def mail_a_link(request: Request, session: Session) -> HTMLResponse:
    form = await read_form(request)
    typed, landing = form.text("email"), local_path(form.text("next"))
    email = normal_email(typed)
    if email is None:
        problem = "That is not an e-mail address." if typed else "Enter your e-mail address."
        values = {"next": landing, "email": typed, "problem": problem}
        return render(request, "sign_in.html", values, status=400)
    limit: AddressLimit = request.app.state.address_limit
    limit.note(request.client.host if request.client else "")
    await mail_link(request, session, email, landing or "", "Sign in to")
    return render(request, "link_sent.html", {"email": email})


async def mail_link(request: Request, session: Session, email: str, landing: str, purpose: str) -> None:
    """Mail a sign-in link. Raises TooManyRequests, and Unavailable when no mail can be sent."""
    address = public_address(request, SIGN_IN)
    token = await links.make_link(session, email, landing)
    post: Post = request.app.state.post
    seller = request.app.state.seller_name
    await post.send(email, f"{purpose} {seller}", _LINK_MAIL.format(seller=seller, url=f"{address}/{token}"))


@router.get(SIGN_IN + "/{token}")
async def show_link(token: str, request: Request, session: Session) -> HTMLResponse:
    link = await links.look_at_link(session, token)
    if link is None:
        raise LinkExpired
    return render(request, "use_link.html", {"email": link.email, "action": f"{SIGN_IN}/{token}"})


@router.post(SIGN_IN + "/{token}")
async def use_link(token: str, request: Request, session: Session) -> Response:
    await read_form(request)
    link = await links.use_link(session, token)
    if link is None:
        raise LinkExpired
    member = await members.member_of_email(session, link.email)
    member.last_sign_in_at = clock.utc_now()
    cookie = cookie_of(request)
    if (before := cookie.token(request.cookies)) is not None:
        await sessions.end(session, before)
    is_team_only = member.customer_id is None and member.email in request.app.state.team
    home = TEAM_HOME if is_team_only else CUSTOMER_HOME
    response = RedirectResponse(local_path(link.landing) or home, 303)
    cookie.set(response, await sessions.begin(session, member))
    return response


@router.get(WELCOME)
async def ask_for_name(request: Request, me: TheSignedIn) -> Response:
    if me.customer_id_or_none is not None:
        return RedirectResponse(CUSTOMER_HOME, 303)
    return render(request, "welcome.html", {"name": "", "problem": None})


@router.post(WELCOME)
async def sign_up(
    request: Request, me: TheSignedIn, form: TheForm, session: Session, ledger: TheLedger
) -> Response:
    member = await members.member_of_email(session, me.email)  # locked: of two clicks the second waits
    await session.refresh(member)
    if member.customer_id is None:
        name = form.text("name")
        if not name or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
            problem = f"Enter a name of 1 to {MAX_NAME_CHARACTERS} characters."
            return render(request, "welcome.html", {"name": name, "problem": problem}, status=400)
        customer = await customers.sign_up(session, ledger, name, me.email)
        member.customer_id = customer.id
    return redirect(request, CUSTOMER_HOME, "Welcome. Buy credits, make a key, and your first call is next.")


@router.post("/console/sign-out")
async def sign_out(request: Request, me: TheSignedIn, form: TheForm, session: Session) -> Response:
    cookie = cookie_of(request)
    if form.text("everywhere"):
        await sessions.end_all(session, me.member_id)
    elif (token := cookie.token(request.cookies)) is not None:
        await sessions.end(session, token)
    response = RedirectResponse(SIGN_IN, 303)
    cookie.clear(response)
    return response


_LINK_MAIL = """\
Open this link to sign in to {seller}. It works once, for 15 minutes:

{url}

If you did not ask for it, do nothing: without this mail nobody can sign in as you.
"""
