"""How the command line administers payments: a part of billing's AdminClient."""

from urllib.parse import quote

from darktree_billing.payments_schemas import (
    BeginCheckout,
    Checkout,
    EventPage,
    EventState,
    EventView,
    FreezeView,
    OrderPage,
    OrderView,
    PaymentsStatus,
    RefundOrder,
    ReversalKind,
    ReversalPage,
    SetFrozen,
    SweepReport,
)
from darktree_kit.http import InternalClient


class PaymentsCalls:
    """Orders, refunds, disputes, Stripe's events and freezes. Raises billing's refusals, and Unreachable."""

    _http: InternalClient
    _slow_http: InternalClient

    async def begin_checkout(self, customer_id: str, body: BeginCheckout) -> Checkout:
        """Order a plan's bundle; whoever opens the address pays it."""
        path = f"/admin/customers/{_part(customer_id)}/checkouts"
        content = await self._slow_http.call("POST", path, body=body.model_dump_json().encode())
        return Checkout.model_validate_json(content)

    async def orders(self, customer_id: str | None, *, limit: int, after: str | None) -> OrderPage:
        """Return one page of orders, newest first."""
        params = _told({"customer_id": customer_id, "limit": str(limit), "after": after})
        return OrderPage.model_validate_json(await self._http.call("GET", "/admin/orders", params=params))

    async def order(self, order_id: str) -> OrderView:
        return OrderView.model_validate_json(await self._http.call("GET", _order(order_id)))

    async def check_order(self, order_id: str) -> OrderView:
        """Have billing look at Stripe now."""
        return OrderView.model_validate_json(await self._slow_http.call("POST", _order(order_id, "check")))

    async def refund_order(self, order_id: str, body: RefundOrder) -> OrderView:
        """Have Stripe pay back. The same `refund_id` refunds once."""
        content = await self._slow_http.call(
            "POST", _order(order_id, "refunds"), body=body.model_dump_json().encode()
        )
        return OrderView.model_validate_json(content)

    async def reversals(
        self, kind: ReversalKind, customer_id: str | None, *, limit: int, after: str | None
    ) -> ReversalPage:
        """Return one page of refunds or disputes, newest first."""
        params = _told({"kind": kind, "customer_id": customer_id, "limit": str(limit), "after": after})
        content = await self._http.call("GET", "/admin/reversals", params=params)
        return ReversalPage.model_validate_json(content)

    async def evidence(self, dispute_id: str) -> bytes:
        """Return what to send to Stripe about a dispute: a zip."""
        return await self._slow_http.call("GET", f"/admin/disputes/{_part(dispute_id)}/evidence.zip")

    async def events(self, state: EventState | None, *, limit: int, after: str | None) -> EventPage:
        """Return one page of Stripe's events, newest first."""
        params = _told({"state": state, "limit": str(limit), "after": after})
        return EventPage.model_validate_json(await self._http.call("GET", "/admin/events", params=params))

    async def retry_event(self, event_id: str) -> EventView:
        """Have an event handled again."""
        path = f"/admin/events/{_part(event_id)}/retry"
        return EventView.model_validate_json(await self._http.call("POST", path))

    async def set_frozen(self, customer_id: str, body: SetFrozen) -> FreezeView:
        """Refuse a customer's keys, or take them again."""
        path = f"/admin/customers/{_part(customer_id)}/freeze"
        content = await self._http.call("PUT", path, body=body.model_dump_json().encode())
        return FreezeView.model_validate_json(content)

    async def sweep(self) -> SweepReport:
        """Have billing ask Stripe for everything that may have been missed."""
        return SweepReport.model_validate_json(await self._slow_http.call("POST", "/admin/payments/sweep"))

    async def payments_status(self) -> PaymentsStatus:
        """Return how buying stands."""
        return PaymentsStatus.model_validate_json(await self._http.call("GET", "/admin/payments/status"))


def _order(order_id: str, *rest: str) -> str:
    return "/".join(["/admin/orders", _part(order_id), *rest])


def _told(params: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in params.items() if value is not None}


def _part(text: str) -> str:
    """Return one part of a path; what an operator typed cannot reach another path."""
    return quote(text, safe="") or "-"
