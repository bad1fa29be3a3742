"""The overview: what is left, what it buys, how long it lasts, and today against the cap."""

import asyncio
from datetime import timedelta

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

from darktree_billing import accounts, keys
from darktree_billing.console.charts import Series, bars
from darktree_billing.console.entries import line
from darktree_billing.console.shell import TheMember, render
from darktree_billing.console.standing import SHOWN_DAYS, standing
from darktree_billing.freezes import is_frozen
from darktree_billing.schemas import MAX_PAGE
from darktree_billing.state import TheLedger, ThePlansFile
from darktree_kit.db import Session

LATEST_ENTRIES = 6

router = APIRouter(include_in_schema=False)


@router.get("/console")
async def overview(
    request: Request, me: TheMember, session: Session, ledger: TheLedger, plans_file: ThePlansFile
) -> HTMLResponse:
    plans = plans_file.current()
    with accounts.ledger_refusals():
        now, latest = await asyncio.gather(
            standing(ledger, plans, me.customer_id), ledger.entries(me.customer_id, limit=LATEST_ENTRIES)
        )
    known = (await keys.list_keys(session, me.customer_id, MAX_PAGE, None)).data
    names = {key.id: key.name for key in known}
    today = now.account.day
    has_usage = any(day.requests or day.refused_requests for day in now.days)
    days = [today - timedelta(days=SHOWN_DAYS - 1 - place) for place in range(SHOWN_DAYS)]
    tokens = Series("Tokens", {day.day: day.prompt_tokens + day.completion_tokens for day in now.days})
    values = {
        "now": now,
        "chart": bars(
            days,
            [tokens],
            unit="tokens",
            title=f"Tokens of the last {SHOWN_DAYS} days",
            limit=now.account.cap_tokens,
            limit_name="daily cap",
        ),
        "has_usage": has_usage,
        "latest": [line(entry, names) for entry in latest.data],
        "active_keys": sum(key.status == "active" for key in known),
        "is_new": not has_usage and not any(entry.kind == "usage" for entry in latest.data),
        "has_credits": now.account.balance_nanos > 0,
        "frozen": await is_frozen(session, me.customer_id),
        "api_url": request.app.state.api_url,
        "model": plans.models[0].id,
    }
    return render(request, "overview.html", values)
