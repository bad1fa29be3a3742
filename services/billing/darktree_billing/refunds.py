"""Refunds that the team asks for: Stripe pays back, and what that does to the credits follows from Stripe."""

import logging

from darktree_billing.errors import NotRefundable
from darktree_billing.fulfilment import Shop, fulfil
from darktree_billing.orders import find_order
from darktree_billing.payments_schemas import OrderView, RefundOrder

_log = logging.getLogger(__name__)


async def refund_order(shop: Shop, order_id: str, body: RefundOrder, by: str) -> OrderView:
    """Refund an order, whole or in part; the same `refund_id` refunds once.

    Raises UnknownOrder, NotRefundable while nothing was paid, StripeRefused when Stripe will not (too much, disputed,
    refunded already, or the id came with another amount), and StripeUnavailable.
    """
    async with shop.database.sessions.begin() as session:
        order = await find_order(session, order_id)
    if order.payment_intent_id is None or order.granted_at is None:
        raise NotRefundable(f"Order {order_id} is {order.state}: nothing was paid that could be refunded.")
    refund = await shop.payments.refund(
        order.payment_intent_id,
        body.amount_cents,
        key=f"{order_id}/{body.refund_id}",
        metadata={"order_id": order_id, "refund_id": str(body.refund_id), "by": by, "reason": body.reason},
    )
    _log.info("an order is refunded", extra={"order": order_id, "refund": refund, "by": by})
    return await fulfil(shop, order_id)
