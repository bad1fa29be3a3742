"""What the gateway asks: whose key this is, and what things cost."""

from fastapi import APIRouter, Depends
from fastapi.security import HTTPBearer

from darktree_billing import keys, reconciliation
from darktree_billing.reconciliation_schemas import EngineReadings
from darktree_billing.schemas import Catalog, VerifiedKey, VerifyKey
from darktree_billing.state import ThePeppers, ThePlansFile
from darktree_kit.auth import require
from darktree_kit.db import Session
from darktree_kit.openapi import refusals

router = APIRouter(
    prefix="/internal",
    tags=["internal"],
    dependencies=[
        Depends(require("gateway")),
        Depends(HTTPBearer(scheme_name="gateway", auto_error=False)),  # for the description only
    ],
    responses=refusals(401, 403, 503),
)


@router.post("/keys/verify", responses=refusals(400, 404))
async def verify_key(
    body: VerifyKey, session: Session, peppers: ThePeppers, plans_file: ThePlansFile
) -> VerifiedKey:
    """Tell whose key this is; 404 when it is unknown, revoked or expired, 403 `account_frozen` when its owner is."""
    return await keys.verify_key(session, peppers, plans_file.current(), body)


@router.post("/engine-readings", status_code=204, responses=refusals(400))
async def keep_engine_readings(body: EngineReadings, session: Session) -> None:
    """Keep what engines say they processed, to be held against the ledger."""
    await reconciliation.keep_readings(session, body.readings)


@router.get("/catalog")
async def catalog(plans_file: ThePlansFile) -> Catalog:
    """Tell every plan and model with its prices."""
    return plans_file.current().catalog()
