"""The daily cap: what it is, what happened at it, how it came to be, and a way to ask for another."""

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from darktree_billing import accounts, requests
from darktree_billing.console.sessions import SignedIn
from darktree_billing.console.shell import TheForm, TheMember, redirect, render
from darktree_billing.errors import TooManyOpen
from darktree_billing.request_schemas import AskCap
from darktree_billing.state import TheLedger
from darktree_kit.db import Session
from darktree_ledger.client import LedgerClient
from darktree_ledger.schemas import MAX_TOKENS

SHOWN_DAYS = 30
SHOWN_REQUESTS = 20
MAX_REASON_CHARACTERS = 500

router = APIRouter(include_in_schema=False)


@router.get("/console/cap")
async def show_cap(request: Request, me: TheMember, session: Session, ledger: TheLedger) -> Response:
    return await _page(request, me, session, ledger)


@router.post("/console/cap")
async def ask_for_another(
    request: Request, me: TheMember, form: TheForm, session: Session, ledger: TheLedger
) -> Response:
    wanted = form.number("cap_tokens", least=1, most=MAX_TOKENS)
    reason = " ".join(form.text("reason", 2_000).split())
    problems = {}
    if wanted is None:
        problems["cap_tokens"] = f"Enter a whole number of tokens, from 1 to {MAX_TOKENS:,}."
    if not reason or len(reason) > MAX_REASON_CHARACTERS or not reason.isprintable():
        problems["reason"] = f"Say in 1 to {MAX_REASON_CHARACTERS} characters what it is for."
    if wanted is not None and not problems:
        try:
            await requests.ask_cap(
                session, me.customer_id, AskCap(cap_tokens=wanted, reason=reason), by=me.email
            )
        except TooManyOpen as error:
            problems["cap_tokens"] = error.message
        else:
            return redirect(request, "/console/cap", "You asked for another cap. The platform team decides.")
    typed = {"cap_tokens": form.text("cap_tokens", 32), "reason": reason}
    return await _page(request, me, session, ledger, problems=problems, typed=typed)


async def _page(
    request: Request,
    me: SignedIn,
    session: Session,
    ledger: LedgerClient,
    *,
    problems: dict[str, str] | None = None,
    typed: dict[str, str] | None = None,
) -> Response:
    with accounts.ledger_refusals():
        recent, changes = await asyncio.gather(
            ledger.recent(me.customer_id, SHOWN_DAYS), accounts.cap_changes(ledger, me.customer_id)
        )
    asked = await requests.list_cap_requests(session, me.customer_id, limit=SHOWN_REQUESTS)
    values = {
        "account": recent.account,
        "changes": changes,
        "days": [day for day in reversed(recent.days) if day.requests or day.refused_requests],
        "asked": asked.data,
        "open": next((one for one in asked.data if one.state == "open"), None),
        "problems": problems or {},
        "typed": typed or {"cap_tokens": "", "reason": ""},
    }
    return render(request, "cap.html", values, status=400 if problems else 200)
