"""What an administrator does: customers, their keys, their caps and their credits."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.security import HTTPBearer

from darktree_billing import accounts, customers, freezes, keys, limits, reconciliation
from darktree_billing.close_api import TheChart
from darktree_billing.key_format import KEY_ID_PATTERN
from darktree_billing.reconciliation_schemas import ReconciliationReport
from darktree_billing.schemas import (
    DEFAULT_PAGE,
    MAX_PAGE,
    AdjustCredits,
    AdjustmentView,
    CapView,
    Catalog,
    CreateCustomer,
    CreatedKey,
    CreateKey,
    CustomerPage,
    CustomerView,
    GrantCredits,
    GrantView,
    KeyPage,
    KeyView,
    LimitsView,
    RequestLimits,
    SetCap,
    StatusView,
)
from darktree_billing.state import TheLedger, ThePeppers, ThePlansFile
from darktree_kit.auth import require
from darktree_kit.db import Session
from darktree_kit.openapi import refusals
from darktree_kit.version import VERSION
from darktree_ledger.reports import HoldPage
from darktree_ledger.schemas import CUSTOMER_ID_PATTERN, AccountView, CheckReport, EntryPage

CustomerIdInPath = Annotated[str, Path(pattern=CUSTOMER_ID_PATTERN)]
KeyIdInPath = Annotated[str, Path(pattern=KEY_ID_PATTERN)]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="How many at most.")]
After = Annotated[
    str | None,
    Query(min_length=1, max_length=128, pattern=r"^[!-~]+$", description="`next` of the page before."),
]

router = APIRouter(
    prefix="/admin",
    tags=["admin"],
    dependencies=[
        Depends(require("admin")),
        Depends(HTTPBearer(scheme_name="admin", auto_error=False)),  # for the description only
    ],
    responses=refusals(401, 403, 503),
)


@router.post(
    "/customers",
    status_code=201,
    responses=refusals(400, 409)
    | {200: {"model": CustomerView, "description": "It exists already, just so."}},
)
async def create_customer(
    body: CreateCustomer, session: Session, ledger: TheLedger, plans_file: ThePlansFile, response: Response
) -> CustomerView:
    """Make a customer and its account with the plan's cap. With an id, repeating it changes nothing."""
    customer, is_new = await customers.create_customer(session, ledger, plans_file.current(), body)
    if not is_new:
        response.status_code = 200
    return customer


@router.get("/customers", responses=refusals(400))
async def list_customers(session: Session, limit: Limit = DEFAULT_PAGE, after: After = None) -> CustomerPage:
    """List customers in order of their ids."""
    return await customers.list_customers(session, limit, after)


@router.get("/customers/{customer_id}", responses=refusals(400, 404))
async def show_customer(customer_id: CustomerIdInPath, session: Session) -> CustomerView:
    return await customers.show_customer(session, customer_id)


@router.post("/customers/{customer_id}/keys", status_code=201, responses=refusals(400, 404, 409))
async def create_key(
    customer_id: CustomerIdInPath, body: CreateKey, session: Session, peppers: ThePeppers
) -> CreatedKey:
    """Make a key. This answer is the only one that ever holds it."""
    return await keys.create_key(session, peppers, customer_id, body)


@router.get("/customers/{customer_id}/keys", responses=refusals(400, 404))
async def list_keys(
    customer_id: CustomerIdInPath, session: Session, limit: Limit = DEFAULT_PAGE, after: After = None
) -> KeyPage:
    """List a customer's keys, oldest first, without their secrets."""
    await customers.find_customer(session, customer_id)
    return await keys.list_keys(session, customer_id, limit, after)


@router.delete("/keys/{key_id}", responses=refusals(400, 404))
async def revoke_key(key_id: KeyIdInPath, session: Session) -> KeyView:
    """Revoke a key for good. Gateways stop taking it within seconds."""
    return await keys.revoke_key(session, key_id)


@router.get("/customers/{customer_id}/cap", responses=refusals(400, 404))
async def show_cap(customer_id: CustomerIdInPath, session: Session, ledger: TheLedger) -> CapView:
    await customers.find_customer(session, customer_id)
    return await accounts.cap(ledger, customer_id)


@router.put("/customers/{customer_id}/cap", responses=refusals(400, 404, 409))
async def set_cap(
    customer_id: CustomerIdInPath, body: SetCap, session: Session, ledger: TheLedger
) -> CapView:
    """Set the daily cap. What is used or running already stays so; zero stops everything."""
    await freezes.locked_customer(session, customer_id)  # a purchase looks at the cap, and then sets it
    await accounts.change_cap(ledger, customer_id, body)
    return await accounts.cap(ledger, customer_id)


@router.get("/customers/{customer_id}/limits", responses=refusals(400, 404))
async def show_limits(
    customer_id: CustomerIdInPath, session: Session, plans_file: ThePlansFile
) -> LimitsView:
    """Show how many requests each of a customer's keys may send."""
    return await limits.show_limits(session, plans_file.current(), customer_id)


@router.put("/customers/{customer_id}/limits", responses=refusals(400, 404))
async def set_limits(
    customer_id: CustomerIdInPath, body: RequestLimits, session: Session, plans_file: ThePlansFile
) -> LimitsView:
    """Give a customer limits of their own: null is what the plan says, 0 no limit. Gateways follow within seconds."""
    return await limits.set_limits(session, plans_file.current(), customer_id, body)


@router.post("/customers/{customer_id}/grants", responses=refusals(400, 404, 409))
async def grant(
    customer_id: CustomerIdInPath, body: GrantCredits, session: Session, ledger: TheLedger
) -> GrantView:
    """Give credits. With a `grant_id`, repeating it gives nothing more."""
    await customers.find_customer(session, customer_id)
    return await accounts.grant(ledger, customer_id, body)


@router.post("/customers/{customer_id}/adjustments", responses=refusals(400, 404, 409))
async def adjust(
    customer_id: CustomerIdInPath, body: AdjustCredits, session: Session, ledger: TheLedger
) -> AdjustmentView:
    """Correct a balance, up or down. With an `adjustment_id`, repeating it changes nothing more."""
    await customers.find_customer(session, customer_id)
    return await accounts.adjust(ledger, customer_id, body)


@router.get("/holds", responses=refusals(400, 404))
async def holds(
    ledger: TheLedger,
    limit: Limit = DEFAULT_PAGE,
    after: After = None,
    customer_id: Annotated[str | None, Query(pattern=CUSTOMER_ID_PATTERN)] = None,
) -> HoldPage:
    """List what running requests hold, by customer and age."""
    return await accounts.open_holds(ledger, customer_id, limit, after)


@router.get("/customers/{customer_id}/balance", responses=refusals(400, 404))
async def balance(customer_id: CustomerIdInPath, session: Session, ledger: TheLedger) -> AccountView:
    """Show the row of the ledger that enforces the balance and the cap."""
    await customers.find_customer(session, customer_id)
    return await accounts.account(ledger, customer_id)


@router.get("/customers/{customer_id}/entries", responses=refusals(400, 404))
async def entries(
    customer_id: CustomerIdInPath,
    session: Session,
    ledger: TheLedger,
    limit: Limit = DEFAULT_PAGE,
    after: After = None,
    kind: Literal["grant", "usage", "absorbed"] | None = None,
) -> EntryPage:
    """List the customer's ledger entries, newest first."""
    await customers.find_customer(session, customer_id)
    return await accounts.entries(ledger, customer_id, limit, after, kind)


@router.get("/plans")
async def plans(plans_file: ThePlansFile) -> Catalog:
    """Show plans, models, prices, and what each plan's credits buy."""
    return plans_file.current().catalog()


@router.post("/ledger/check")
async def check_ledger(ledger: TheLedger) -> CheckReport:
    """Have the ledger compare every balance with its entries. Takes time: it reads the whole ledger."""
    return await accounts.check(ledger)


@router.get("/reconciliation", responses=refusals(409))
async def reconcile(
    session: Session, ledger: TheLedger, request: Request, chart: TheChart
) -> ReconciliationReport:
    """Hold the ledger against engines, Stripe, its own projection and its log."""
    return await reconciliation.report(session, ledger, chart, request.app.state.tolerance)


@router.get("/status")
async def status(
    session: Session, ledger: TheLedger, plans_file: ThePlansFile, peppers: ThePeppers
) -> StatusView:
    """Show what billing sees: the ledger, the plans file, and how many customers and keys there are."""
    in_use = plans_file.current()
    counts = await keys.count_keys(session)
    return StatusView(
        version=VERSION,
        ledger_problem=await accounts.ledger_problem(ledger),
        plans_problem=plans_file.problem,
        plans=len(in_use.plans),
        models=len(in_use.models),
        customers=await customers.count_customers(session),
        active_keys=counts["active"],
        revoked_keys=counts["revoked"],
        expired_keys=counts["expired"],
        keys_with_old_pepper=await keys.count_keys_with_old_pepper(session, peppers),
    )
