"""The webhook inbox: Stripe's events as they came, what became of each, and another try for what was given up."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import HTMLResponse, Response

from darktree_billing import events
from darktree_billing.admin import After
from darktree_billing.console.shell import TEAM_HOME, TheForm, TheTeamMember, redirect, render
from darktree_billing.payments_schemas import STRIPE_ID_PATTERN, EventState
from darktree_kit.db import Session

PAGE = 50
EVENTS = TEAM_HOME + "/events"

router = APIRouter(include_in_schema=False)


@router.get(EVENTS)
async def list_events(
    request: Request,
    _: TheTeamMember,
    session: Session,
    state: Annotated[EventState | None, Query()] = None,
    after: After = None,
) -> HTMLResponse:
    page = await events.list_events(session, state, PAGE, after)
    values = {"events": page.data, "next": page.next, "first": after is None, "state": state}
    return render(request, "team/events.html", values)


@router.post(EVENTS + "/{event_id}/retry")
async def retry(
    event_id: Annotated[str, Path(pattern=STRIPE_ID_PATTERN)],
    request: Request,
    me: TheTeamMember,
    form: TheForm,
    session: Session,
) -> Response:
    del form  # its token has been checked
    event = await events.retry_event(session, event_id, me.email)
    return redirect(request, EVENTS, f"{event.type} ({event.id}) is handled again, at once.")
