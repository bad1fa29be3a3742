"""What the gateway asks: whose key this is, and what things cost."""

from fastapi import APIRouter, Depends
from fastapi.security import HTTPBearer

from darktree_billing import keys
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
async def verify_key(body: VerifyKey, session: Session, peppers: ThePeppers) -> VerifiedKey:
    """Tell whose key this is; 404 when it is unknown, revoked or expired."""
    return await keys.verify_key(session, peppers, body)


@router.get("/catalog")
async def catalog(plans_file: ThePlansFile) -> Catalog:
    """Tell every plan and model with its prices."""
    return plans_file.current().catalog()
