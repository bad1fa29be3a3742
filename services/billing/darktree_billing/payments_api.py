"""Payments over HTTP, for administrators: orders, refunds, disputes, events, freezes, and a sweep on demand."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response
from fastapi.security import HTTPBearer

from darktree_billing import events, evidence, freezes, orders, payment_health, refunds, sweep
from darktree_billing.accounts import ACTOR
from darktree_billing.admin import After, CustomerIdInPath, Limit
from darktree_billing.checkout import begin_checkout
from darktree_billing.close_api import ZIP
from darktree_billing.customers import find_customer
from darktree_billing.fulfilment import fulfil
from darktree_billing.payments_schemas import (
    ORDER_ID_PATTERN,
    STRIPE_ID_PATTERN,
    BeginCheckout,
    Checkout,
    EventPage,
    EventState,
    EventView,
    FreezeView,
    OrderPage,
    OrderState,
    OrderView,
    PaymentsStatus,
    RefundOrder,
    ReversalKind,
    ReversalPage,
    SetFrozen,
    SweepReport,
)
from darktree_billing.schemas import DEFAULT_PAGE
from darktree_billing.selling import MaybeShop, TheSeller, TheShop
from darktree_billing.state import TheBooksKey, TheLedger, ThenWakeTheInbox, ThePlansFile
from darktree_kit.auth import require
from darktree_kit.db import Session
from darktree_kit.openapi import refusals
from darktree_ledger.schemas import CUSTOMER_ID_PATTERN

OrderId = Annotated[str, Path(pattern=ORDER_ID_PATTERN)]
EventId = Annotated[str, Path(pattern=STRIPE_ID_PATTERN)]
DisputeId = Annotated[str, Path(pattern=STRIPE_ID_PATTERN)]
OfCustomer = Annotated[str | None, Query(pattern=CUSTOMER_ID_PATTERN, description="Only this customer's.")]

router = APIRouter(
    prefix="/admin",
    tags=["payments"],
    dependencies=[
        Depends(require("admin")),
        Depends(HTTPBearer(scheme_name="admin", auto_error=False)),  # for the description only
    ],
    responses=refusals(401, 403, 503),
)


@router.post("/customers/{customer_id}/checkouts", status_code=201, responses=refusals(400, 404, 409))
async def checkout(
    customer_id: CustomerIdInPath,
    body: BeginCheckout,
    shop: TheShop,
    plans_file: ThePlansFile,
    seller: TheSeller,
) -> Checkout:
    """Order a plan's bundle for a customer; whoever opens the address pays it."""
    return await begin_checkout(
        shop.database, shop.payments, plans_file.current(), seller, customer_id, body.plan, ACTOR
    )


@router.get("/orders", responses=refusals(400))
async def list_orders(
    session: Session,
    customer_id: OfCustomer = None,
    state: OrderState | None = None,
    limit: Limit = DEFAULT_PAGE,
    after: After = None,
) -> OrderPage:
    """List orders, newest first."""
    return await orders.list_orders(session, customer_id, limit, after, state)


@router.get("/orders/{order_id}", responses=refusals(400, 404))
async def show_order(order_id: OrderId, session: Session) -> OrderView:
    return await orders.find_order(session, order_id)


@router.post("/orders/{order_id}/check", responses=refusals(400, 404, 409))
async def check_order(order_id: OrderId, shop: TheShop) -> OrderView:
    """Look at Stripe now, and bring the order to where its payment stands."""
    return await fulfil(shop, order_id)


@router.post("/orders/{order_id}/refunds", responses=refusals(400, 404, 409))
async def refund_order(order_id: OrderId, body: RefundOrder, shop: TheShop) -> OrderView:
    """Have Stripe pay an order back, whole or in part, and take back what is unused of its credits."""
    return await refunds.refund_order(shop, order_id, body, ACTOR)


@router.get("/reversals", responses=refusals(400))
async def list_reversals(
    session: Session,
    kind: Annotated[ReversalKind, Query(description="What to list.")] = "dispute",
    customer_id: OfCustomer = None,
    limit: Limit = DEFAULT_PAGE,
    after: After = None,
) -> ReversalPage:
    """List disputes, or refunds, newest first."""
    return await orders.list_reversals(session, kind, customer_id, limit, after)


@router.get(
    "/disputes/{dispute_id}/evidence.zip",
    response_class=Response,
    responses=refusals(400, 404)
    | {
        200: {
            "description": "What to send to Stripe, made from the ledger and a statement.",
            "content": {ZIP: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def read_evidence(
    dispute_id: DisputeId, session: Session, ledger: TheLedger, signer: TheBooksKey, seller: TheSeller
) -> Response:
    content = await evidence.make_evidence(session, ledger, signer, seller.name, dispute_id)
    headers = {"Content-Disposition": f'attachment; filename="evidence-{dispute_id}.zip"'}
    return Response(content, media_type=ZIP, headers=headers)


@router.get("/events", responses=refusals(400))
async def list_events(
    session: Session,
    state: Annotated[EventState | None, Query(description="Only these: `dead` need a person.")] = None,
    limit: Limit = DEFAULT_PAGE,
    after: After = None,
) -> EventPage:
    """List Stripe's events as they were received, newest first."""
    return await events.list_events(session, state, limit, after)


@router.get("/events/{event_id}", responses=refusals(400, 404))
async def show_event(event_id: EventId, session: Session) -> EventView:
    return await events.find_event(session, event_id)


@router.post("/events/{event_id}/retry", responses=refusals(400, 404, 409), dependencies=[ThenWakeTheInbox])
async def retry_event(event_id: EventId, session: Session) -> EventView:
    """Handle an event again, as if it had just come."""
    return await events.retry_event(session, event_id, ACTOR)


@router.get("/customers/{customer_id}/freeze", responses=refusals(400, 404))
async def show_freeze(customer_id: CustomerIdInPath, session: Session) -> FreezeView:
    """Tell whether a customer's keys are refused, and why."""
    await find_customer(session, customer_id)
    return await freezes.freeze_view(session, customer_id)


@router.put("/customers/{customer_id}/freeze", responses=refusals(400, 404))
async def set_freeze(customer_id: CustomerIdInPath, body: SetFrozen, session: Session) -> FreezeView:
    """Refuse a customer's keys, or take them again. Gateways follow within seconds."""
    return await freezes.set_frozen(session, customer_id, body.frozen, body.reason, ACTOR)


@router.post("/payments/sweep", responses=refusals(409), dependencies=[ThenWakeTheInbox])
async def sweep_now(shop: TheShop) -> SweepReport:
    """Ask Stripe for everything that may have been missed, now."""
    return await sweep.sweep(shop)


@router.get("/payments/status")
async def payments_status(session: Session, shop: MaybeShop) -> PaymentsStatus:
    """Tell how buying stands: what waits, what was given up, what needs a person."""
    return await payment_health.status(session, buying=shop is not None)
