"""What customers ask for, over HTTP: the team's list, its decisions, and the manifest of a lane that was asked for."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from darktree_billing import admin, requests
from darktree_billing.accounts import ACTOR
from darktree_billing.admin import After, Limit
from darktree_billing.lane_manifest import MEDIA_TYPE, lane_manifest
from darktree_billing.request_schemas import (
    CAP_REQUEST_ID_PATTERN,
    LANE_REQUEST_ID_PATTERN,
    CapRequestPage,
    CapRequestState,
    CapRequestView,
    DecideCap,
    DecideLane,
    LaneRequestPage,
    LaneRequestState,
    LaneRequestView,
)
from darktree_billing.schemas import DEFAULT_PAGE
from darktree_billing.state import TheLedger, ThePlansFile
from darktree_kit.db import Session
from darktree_kit.openapi import refusals
from darktree_ledger.schemas import CUSTOMER_ID_PATTERN

CapRequestId = Annotated[str, Path(pattern=CAP_REQUEST_ID_PATTERN)]
LaneRequestId = Annotated[str, Path(pattern=LANE_REQUEST_ID_PATTERN)]
OfCustomer = Annotated[str | None, Query(pattern=CUSTOMER_ID_PATTERN, description="This customer's only.")]

router = APIRouter(
    prefix="/admin", tags=["admin"], dependencies=admin.router.dependencies, responses=admin.router.responses
)


@router.get("/cap-requests", responses=refusals(400))
async def list_cap_requests(
    session: Session,
    limit: Limit = DEFAULT_PAGE,
    after: After = None,
    customer_id: OfCustomer = None,
    state: CapRequestState | None = None,
) -> CapRequestPage:
    """List who asked for another daily cap, newest first."""
    return await requests.list_cap_requests(session, customer_id, state, limit, after)


@router.post("/cap-requests/{request_id}/decision", responses=refusals(400, 404, 409))
async def decide_cap(
    request_id: CapRequestId, body: DecideCap, session: Session, ledger: TheLedger
) -> CapRequestView:
    """Approve or decline. An approval sets the cap; repeating a decision changes nothing."""
    return await requests.decide_cap(session, ledger, request_id, body, ACTOR)


@router.get("/lane-requests", responses=refusals(400))
async def list_lane_requests(
    session: Session,
    limit: Limit = DEFAULT_PAGE,
    after: After = None,
    customer_id: OfCustomer = None,
    state: LaneRequestState | None = None,
) -> LaneRequestPage:
    """List who asked for a dedicated lane, newest first."""
    return await requests.list_lane_requests(session, customer_id, state, limit, after)


@router.get(
    "/lane-requests/{request_id}/manifest.yaml",
    responses=refusals(400, 404, 409)
    | {200: {"content": {MEDIA_TYPE: {}}, "description": "An InferenceLane."}},
    response_class=Response,
)
async def manifest(request_id: LaneRequestId, session: Session, plans_file: ThePlansFile) -> Response:
    """Return the InferenceLane to apply for a request, filled in."""
    request = await requests.find_lane_request(session, request_id)
    return Response(lane_manifest(request, plans_file.current()), media_type=MEDIA_TYPE)


@router.post("/lane-requests/{request_id}/decision", responses=refusals(400, 404, 409))
async def decide_lane(request_id: LaneRequestId, body: DecideLane, session: Session) -> LaneRequestView:
    """Accept or decline. Repeating a decision changes nothing."""
    return await requests.decide_lane(session, request_id, body, ACTOR)
