"""Orders, and what Stripe took back of them: looked at, brought to where Stripe stands, refunded, and defended."""

from typing import Annotated, Literal, get_args
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.responses import HTMLResponse, Response

from darktree_billing import evidence, orders, refunds
from darktree_billing.admin import After
from darktree_billing.close_api import ZIP
from darktree_billing.console.shell import TEAM_HOME, Form, TheForm, TheTeamMember, redirect, render
from darktree_billing.fulfilment import fulfil
from darktree_billing.payments_schemas import (
    ORDER_ID_PATTERN,
    STRIPE_ID_PATTERN,
    OrderState,
    OrderView,
    RefundOrder,
)
from darktree_billing.selling import MaybeShop, TheSeller, TheShop
from darktree_billing.state import TheBooksKey, TheLedger
from darktree_billing.team.holds import OfCustomer
from darktree_kit import ids
from darktree_kit.db import Session
from darktree_kit.errors import ApiError, BadRequest
from darktree_kit.money import NANOS_PER_CENT, parse_dollars

PAGE = 50
ORDERS = TEAM_HOME + "/orders"
DISPUTES = TEAM_HOME + "/disputes"

OrderId = Annotated[str, Path(pattern=ORDER_ID_PATTERN)]
DisputeId = Annotated[str, Path(pattern=STRIPE_ID_PATTERN)]

router = APIRouter(include_in_schema=False)


@router.get(ORDERS)
async def list_orders(
    request: Request,
    _: TheTeamMember,
    session: Session,
    customer_id: OfCustomer = "",
    state: Annotated[Literal["", OrderState], Query()] = "",
    after: After = None,
) -> HTMLResponse:
    page = await orders.list_orders(session, customer_id or None, PAGE, after, state or None)
    values = {
        "orders": page.data,
        "next": page.next,
        "first": after is None,
        "chosen": {"customer_id": customer_id, "state": state},
        "states": get_args(OrderState),
    }
    return render(request, "team/orders.html", values)


@router.get(ORDERS + "/{order_id}")
async def show(
    order_id: OrderId, request: Request, _: TheTeamMember, session: Session, shop: MaybeShop
) -> HTMLResponse:
    return await _page(request, session, order_id, can_ask_stripe=shop is not None)


@router.post(ORDERS + "/{order_id}/check")
async def check(
    order_id: OrderId, request: Request, _: TheTeamMember, form: TheForm, shop: TheShop
) -> Response:
    del form  # its token has been checked
    order = await fulfil(shop, order_id)
    return redirect(request, f"{ORDERS}/{order_id}", f"As Stripe says: {order.state}.")


@router.post(ORDERS + "/{order_id}/refund")
async def refund(
    order_id: OrderId, request: Request, me: TheTeamMember, form: TheForm, session: Session, shop: TheShop
) -> Response:
    try:
        body = _refund(form)
        order: OrderView = await refunds.refund_order(shop, order_id, body, me.email)
    except (ApiError, ValidationError) as error:
        if isinstance(error, ApiError) and error.answer_status not in {400, 409}:
            raise
        message = error.message if isinstance(error, ApiError) else str(error.errors()[0]["msg"])
        return await _page(request, session, order_id, can_ask_stripe=True, problem=message)
    told = f"Refunded. Of this order ${order.refunded_cents // 100:,}.{order.refunded_cents % 100:02} went back so far."
    return redirect(request, f"{ORDERS}/{order_id}", told)


@router.get(DISPUTES)
async def list_disputes(
    request: Request, _: TheTeamMember, session: Session, customer_id: OfCustomer = "", after: After = None
) -> HTMLResponse:
    page = await orders.list_disputes(session, customer_id or None, PAGE, after)
    values = {"disputes": page.data, "next": page.next, "first": after is None, "customer_id": customer_id}
    return render(request, "team/disputes.html", values)


@router.get(DISPUTES + "/{dispute_id}/evidence.zip")
async def read_evidence(
    dispute_id: DisputeId,
    _: TheTeamMember,
    session: Session,
    ledger: TheLedger,
    signer: TheBooksKey,
    seller: TheSeller,
) -> Response:
    content = await evidence.make_evidence(session, ledger, signer, seller.name, dispute_id)
    named = {"Content-Disposition": f'attachment; filename="evidence-{dispute_id}.zip"'}
    return Response(content, media_type=ZIP, headers=named)


def _refund(form: Form) -> RefundOrder:
    typed = form.text("dollars", 32)
    try:
        nanos = parse_dollars(typed) if typed else None
        refund_id = UUID(form.text("refund_id"))
    except ValueError as error:
        raise BadRequest(str(error)) from error
    if nanos is not None and nanos % NANOS_PER_CENT:
        raise BadRequest("Stripe refunds whole cents.")
    if not (reason := form.text("reason")):
        raise BadRequest("Say why: Stripe and our log keep it.")
    amount_cents = None if nanos is None else nanos // NANOS_PER_CENT
    return RefundOrder(amount_cents=amount_cents, reason=reason, refund_id=refund_id)


async def _page(
    request: Request,
    session: AsyncSession,
    order_id: str,
    *,
    can_ask_stripe: bool,
    problem: str | None = None,
) -> HTMLResponse:
    values = {
        "order": await orders.find_order(session, order_id),
        "can_ask_stripe": can_ask_stripe,
        "refund_id": ids.uuid7(),
        "problem": problem,
    }
    return render(request, "team/order.html", values, status=400 if problem else 200)
