"""API keys: made here and shown once, named, with an end if that is wanted, and revoked for good."""

from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Path, Request
from sqlalchemy import func, select
from starlette.responses import Response

from darktree_billing import keys
from darktree_billing.console.sessions import SignedIn
from darktree_billing.console.shell import TheForm, TheMember, redirect, render
from darktree_billing.errors import TooManyKeys
from darktree_billing.key_format import KEY_ID_PATTERN
from darktree_billing.schemas import MAX_PAGE, CreateKey
from darktree_billing.state import ThePeppers, ThePlansFile
from darktree_kit.db import Session

MAX_NAME_CHARACTERS = 128
LIFETIMES = {"": "Never", "7": "In 7 days", "30": "In 30 days", "90": "In 90 days", "365": "In a year"}

router = APIRouter(include_in_schema=False)


@router.get("/console/keys")
async def list_keys(request: Request, me: TheMember, session: Session) -> Response:
    return await _page(request, me, session)


@router.post("/console/keys")
async def create_key(
    request: Request,
    me: TheMember,
    form: TheForm,
    session: Session,
    peppers: ThePeppers,
    plans_file: ThePlansFile,
) -> Response:
    name, lifetime = form.text("name"), form.text("expires")
    problem = None
    if not name or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        problem = (
            f"Enter a name of 1 to {MAX_NAME_CHARACTERS} characters, such as where the key will be used."
        )
    elif lifetime not in LIFETIMES:
        problem = "Choose when the key ends."
    if problem is not None:
        return await _page(request, me, session, name=name[:MAX_NAME_CHARACTERS], problem=problem)
    body = CreateKey(name=name, expires_at=await _end(session, lifetime))
    try:
        made = await keys.create_key(session, peppers, me.customer_id, body)
    except TooManyKeys as error:
        return await _page(request, me, session, name=name, problem=error.message)
    model = plans_file.current().models[0].id
    values = {"key": made, "api_url": request.app.state.api_url, "model": model}
    return render(request, "key_made.html", values, status=201)


@router.post("/console/keys/{key_id}/revoke")
async def revoke_key(
    key_id: Annotated[str, Path(pattern=KEY_ID_PATTERN)],
    request: Request,
    me: TheMember,
    _: TheForm,
    session: Session,
) -> Response:
    revoked = await keys.revoke_key(session, key_id, me.customer_id)
    return redirect(
        request, "/console/keys", f"{revoked.name} is revoked. It stops working within ten seconds."
    )


async def _page(
    request: Request, me: SignedIn, session: Session, *, name: str = "", problem: str | None = None
) -> Response:
    found = (await keys.list_keys(session, me.customer_id, MAX_PAGE, None)).data
    found.sort(key=lambda key: (key.status != "active", -key.created_at.timestamp()))
    values = {"keys": found, "lifetimes": LIFETIMES, "name": name, "problem": problem}
    return render(request, "keys.html", values, status=200 if problem is None else 400)


async def _end(session: Session, lifetime: str) -> datetime | None:
    if not lifetime:
        return None
    now: datetime | None = await session.scalar(select(func.now()))
    assert now is not None
    return now + timedelta(days=int(lifetime))
