"""What customers have asked for: other caps, lanes of their own; the team's answers, and the manifest to apply."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.responses import HTMLResponse, Response

from darktree_billing import accounts, customers, requests
from darktree_billing.admin import After
from darktree_billing.console.shell import TEAM_HOME, TheForm, TheTeamMember, redirect, render
from darktree_billing.errors import NoDedicatedLane
from darktree_billing.lane_manifest import MEDIA_TYPE, lane_manifest, lane_name
from darktree_billing.plans import Plans
from darktree_billing.request_schemas import (
    CAP_REQUEST_ID_PATTERN,
    LANE_REQUEST_ID_PATTERN,
    CapRequestState,
    DecideCap,
    DecideLane,
    LaneRequestState,
)
from darktree_billing.state import TheLedger, ThePlansFile
from darktree_kit.db import Session
from darktree_kit.errors import ApiError, BadRequest
from darktree_ledger.client import LedgerClient
from darktree_ledger.schemas import MAX_TOKENS

PAGE = 50
CAPS = TEAM_HOME + "/caps"
LANES = TEAM_HOME + "/dedicated"

CapRequestId = Annotated[str, Path(pattern=CAP_REQUEST_ID_PATTERN)]
LaneRequestId = Annotated[str, Path(pattern=LANE_REQUEST_ID_PATTERN)]

router = APIRouter(include_in_schema=False)


@router.get(CAPS)
async def list_caps(
    request: Request,
    _: TheTeamMember,
    session: Session,
    state: Annotated[CapRequestState | None, Query()] = None,
    after: After = None,
) -> HTMLResponse:
    page = await requests.list_cap_requests(session, None, state, PAGE, after)
    return render(
        request,
        "team/caps.html",
        {"requests": page.data, "next": page.next, "state": state, "first": after is None},
    )


@router.get(CAPS + "/{request_id}")
async def show_cap(
    request_id: CapRequestId, request: Request, _: TheTeamMember, session: Session, ledger: TheLedger
) -> HTMLResponse:
    return await _cap_page(request, session, ledger, request_id)


@router.post(CAPS + "/{request_id}")
async def decide_cap(
    request_id: CapRequestId,
    request: Request,
    me: TheTeamMember,
    form: TheForm,
    session: Session,
    ledger: TheLedger,
) -> Response:
    approve = form.text("decision") == "approve"
    cap_tokens = form.number("cap_tokens", 0, MAX_TOKENS) if approve else None
    try:
        if approve and cap_tokens is None:
            raise BadRequest(f"The cap is a whole number of tokens, 0 to {MAX_TOKENS:,}.")
        body = DecideCap(approve=approve, cap_tokens=cap_tokens, note=_note(form.text("note")))
        decided = await requests.decide_cap(session, ledger, request_id, body, me.email)
    except ApiError as error:
        if error.answer_status in {400, 409}:
            return await _cap_page(
                request,
                session,
                ledger,
                request_id,
                error.message.removeprefix("note: "),
                error.answer_status,
            )
        raise
    told = (
        f"{decided.customer_id} may use {decided.decided_cap_tokens:,} tokens a day."
        if approve
        else "Declined."
    )
    return redirect(request, CAPS, told)


@router.get(LANES)
async def list_lanes(
    request: Request,
    _: TheTeamMember,
    session: Session,
    state: Annotated[LaneRequestState | None, Query()] = None,
    after: After = None,
) -> HTMLResponse:
    page = await requests.list_lane_requests(session, None, state, PAGE, after)
    return render(
        request,
        "team/dedicated.html",
        {"requests": page.data, "next": page.next, "state": state, "first": after is None},
    )


@router.get(LANES + "/{request_id}")
async def show_lane(
    request_id: LaneRequestId, request: Request, _: TheTeamMember, session: Session, plans_file: ThePlansFile
) -> HTMLResponse:
    return await _lane_page(request, session, plans_file.current(), request_id)


@router.get(LANES + "/{request_id}/manifest.yaml")
async def download(
    request_id: LaneRequestId, _: TheTeamMember, session: Session, plans_file: ThePlansFile
) -> Response:
    asked = await requests.find_lane_request(session, request_id)
    named = {"Content-Disposition": f'attachment; filename="{lane_name(asked)}.yaml"'}
    return Response(lane_manifest(asked, plans_file.current()), media_type=MEDIA_TYPE, headers=named)


@router.post(LANES + "/{request_id}")
async def decide_lane(
    request_id: LaneRequestId,
    request: Request,
    me: TheTeamMember,
    form: TheForm,
    session: Session,
    plans_file: ThePlansFile,
) -> Response:
    body = DecideLane(accept=form.text("decision") == "accept", note=_note(form.text("note")))
    try:
        await requests.decide_lane(session, request_id, body, me.email)
    except ApiError as error:
        if error.answer_status in {400, 409}:
            message = error.message.removeprefix("note: ")
            return await _lane_page(
                request, session, plans_file.current(), request_id, message, error.answer_status
            )
        raise
    return redirect(request, f"{LANES}/{request_id}", "Accepted." if body.accept else "Declined.")


def _note(typed: str) -> str | None:
    """Return what the customer shall read, on one line."""
    return " ".join(typed.split()) or None


async def _cap_page(
    request: Request,
    session: AsyncSession,
    ledger: LedgerClient,
    request_id: str,
    problem: str | None = None,
    status: int = 200,
) -> HTMLResponse:
    asked = await requests.find_cap_request(session, request_id)
    values = {
        "asked": asked,
        "customer": await customers.show_customer(session, asked.customer_id),
        "account": await accounts.account(ledger, asked.customer_id),
        "cap": await accounts.cap(ledger, asked.customer_id),
        "problem": problem,
    }
    return render(request, "team/cap.html", values, status=status)


async def _lane_page(
    request: Request,
    session: AsyncSession,
    plans: Plans,
    request_id: str,
    problem: str | None = None,
    status: int = 200,
) -> HTMLResponse:
    asked = await requests.find_lane_request(session, request_id)
    try:
        manifest, no_manifest = lane_manifest(asked, plans), None
    except NoDedicatedLane as error:
        manifest, no_manifest = None, error.message
    values = {
        "asked": asked,
        "customer": await customers.show_customer(session, asked.customer_id),
        "lane_name": lane_name(asked),
        "manifest": manifest,
        "no_manifest": no_manifest,
        "problem": problem,
    }
    return render(request, "team/lane_request.html", values, status=status)
