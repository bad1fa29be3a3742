"""Buying: the bundles, the way to Stripe, and what became of an order when somebody comes back."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import HTMLResponse, Response

from darktree_billing.checkout import LEFT_PATH, PAID_PATH, begin_checkout
from darktree_billing.console.budget import rows
from darktree_billing.console.shell import TheForm, TheMember, render
from darktree_billing.errors import UnknownOrder
from darktree_billing.freezes import is_frozen
from darktree_billing.fulfilment import look
from darktree_billing.orders import find_order, list_orders
from darktree_billing.payments_schemas import ORDER_ID_PATTERN
from darktree_billing.selling import MaybeShop, TheSeller, TheShop
from darktree_billing.state import ThePlansFile
from darktree_kit.db import Session

SHOWN_ORDERS = 25

router = APIRouter(include_in_schema=False)


@router.get(LEFT_PATH)
async def show_bundles(
    request: Request,
    me: TheMember,
    session: Session,
    plans_file: ThePlansFile,
    shop: MaybeShop,
    after: Annotated[str | None, Query(pattern=ORDER_ID_PATTERN)] = None,
) -> HTMLResponse:
    orders = await list_orders(session, me.customer_id, SHOWN_ORDERS, after)
    values = {
        "plans": rows(plans_file.current()),
        "orders": orders.data,
        "older": orders.next,
        "is_on": shop is not None,
        "frozen": await is_frozen(session, me.customer_id),
    }
    return render(request, "buy.html", values)


@router.post(LEFT_PATH)
async def buy(
    request: Request, me: TheMember, form: TheForm, shop: TheShop, seller: TheSeller, plans_file: ThePlansFile
) -> Response:
    checkout = await begin_checkout(
        shop.database,
        shop.payments,
        plans_file.current(),
        seller,
        me.customer_id,
        form.text("plan", 64),
        by=me.email,
    )
    # No redirect: a browser holds those of a form against our form-action, and Stripe's page is another site's.
    page = render(request, "to_stripe.html", {"url": checkout.url})
    page.headers["Refresh"] = f"0; url={checkout.url}"
    return page


@router.get(PAID_PATH)
async def come_back(
    request: Request,
    me: TheMember,
    session: Session,
    shop: MaybeShop,
    order: Annotated[str, Query(pattern=ORDER_ID_PATTERN)],
) -> HTMLResponse:
    found = await find_order(session, order)
    if found.customer_id != me.customer_id:
        raise UnknownOrder(order)
    if shop is not None and found.state in {"open", "processing"}:
        found = await look(shop, order)
    return render(request, "order.html", {"order": found})
