"""Asking for a lane of one's own: which model, how many tokens a day, how fast; and what the team answered."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.responses import HTMLResponse, Response

from darktree_billing import requests
from darktree_billing.console.sessions import SignedIn
from darktree_billing.console.shell import Form, TheForm, TheMember, redirect, render
from darktree_billing.plans import Plans
from darktree_billing.request_schemas import (
    MAX_FIRST_TOKEN_MILLISECONDS,
    MAX_LANE_TOKENS_PER_DAY,
    MIN_FIRST_TOKEN_MILLISECONDS,
    AskLane,
)
from darktree_billing.state import ThePlansFile
from darktree_kit.db import Session
from darktree_kit.errors import BadRequest, Conflict

PATH = "/console/dedicated"
MAX_SHOWN = 50
FIELDS = ("model", "tokens_per_day", "first_token_milliseconds", "reason")

router = APIRouter(include_in_schema=False)


@router.get(PATH)
async def show(request: Request, me: TheMember, session: Session, plans_file: ThePlansFile) -> HTMLResponse:
    return await _page(request, me, session, plans_file.current())


@router.post(PATH)
async def ask(
    request: Request, me: TheMember, form: TheForm, session: Session, plans_file: ThePlansFile
) -> Response:
    typed = {name: form.text(name) for name in FIELDS}
    problems = _problems(form)
    if not problems:
        try:
            await requests.ask_lane(session, plans_file.current(), me.customer_id, _asked(form), me.email)
        except ValidationError:
            problems = {"reason": "Write one line, without control characters."}
        except BadRequest as error:
            problems = {error.param or "form": error.message}
        except Conflict:
            problems = {"form": "Your earlier requests are not answered yet: the team does that first."}
    if problems:
        return await _page(request, me, session, plans_file.current(), typed, problems)
    return redirect(request, PATH, "Asked. The team looks at it; the answer stands here.")


def _problems(form: Form) -> dict[str, str]:
    problems = {}
    if form.number("tokens_per_day", 1, MAX_LANE_TOKENS_PER_DAY) is None:
        problems["tokens_per_day"] = f"Enter a whole number of tokens, at most {MAX_LANE_TOKENS_PER_DAY:,}."
    if form.text("first_token_milliseconds") and _milliseconds(form) is None:
        problems["first_token_milliseconds"] = (
            f"Enter {MIN_FIRST_TOKEN_MILLISECONDS} to {MAX_FIRST_TOKEN_MILLISECONDS:,} milliseconds, or nothing."
        )
    if not form.text("reason"):
        problems["reason"] = "Say what it is for: it helps the team to size the lane."
    return problems


def _asked(form: Form) -> AskLane:
    return AskLane(
        model=form.text("model") or "-",
        tokens_per_day=form.number("tokens_per_day") or 0,
        first_token_milliseconds=_milliseconds(form),
        reason=form.text("reason"),
    )


def _milliseconds(form: Form) -> int | None:
    return form.number("first_token_milliseconds", MIN_FIRST_TOKEN_MILLISECONDS, MAX_FIRST_TOKEN_MILLISECONDS)


async def _page(
    request: Request,
    me: SignedIn,
    session: AsyncSession,
    plans: Plans,
    typed: dict[str, Any] | None = None,
    problems: dict[str, str] | None = None,
) -> HTMLResponse:
    asked = await requests.list_lane_requests(session, me.customer_id, limit=MAX_SHOWN)
    values = {
        "models": plans.dedicated_models(),
        "requests": asked.data,
        "typed": typed or dict.fromkeys(FIELDS, ""),
        "problems": problems or {},
    }
    return render(request, "dedicated.html", values, status=400 if problems else 200)
