"""Stripe, as Darktree sees it: the only module that knows the `stripe` library, which nothing of leaves here.

Requests go out with one pinned API version, so what comes back has the shape that is read here, whatever the account's
default is. Events are believed only as far as their signature goes, and then only as hints to look: whatever counts
is fetched.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

from darktree_billing.balance_report import BalanceTransaction, parse_report
from darktree_billing.errors import ForgedEvent, StripeRefused, StripeUnavailable
from darktree_billing.payment_facts import (
    EventFacts,
    ReversalFacts,
    Sale,
    SessionFacts,
    dispute_facts,
    event_facts,
    id_of,
    refund_facts,
    session_facts,
)

if TYPE_CHECKING:
    from stripe import StripeObject

# stripe-python costs a second to import and most processes of ours never need it: it is imported where it is used.

API_VERSION = "2026-10-28.endive"
TIMEOUT_SECONDS = 10
MAX_RETRIES = 2  # of one request, by the library, with the same idempotency key
PAGE = 100  # the most that Stripe gives at once
MAX_PAGES = 1_000
# The events that say that something may have to be done; Stripe takes at most twenty types in a question.
EVENT_TYPES = (
    "checkout.session.completed",
    "checkout.session.async_payment_succeeded",
    "checkout.session.async_payment_failed",
    "checkout.session.expired",
    "charge.refunded",
    "charge.refund.updated",
    "refund.created",
    "refund.updated",
    "refund.failed",
    "charge.dispute.created",
    "charge.dispute.updated",
    "charge.dispute.closed",
    "charge.dispute.funds_withdrawn",
    "charge.dispute.funds_reinstated",
    "payout.paid",
    "payout.failed",
    "payout.canceled",
    "payout.updated",
    "payout.reconciliation_completed",
)


class Payments:
    """Stripe's account, by its API key. Every method raises StripeUnavailable or StripeRefused when it is not done."""

    def __init__(
        self, api_key: str, *, api_base: str = "", automatic_tax: bool = False, tax_code: str = ""
    ) -> None:
        import stripe

        logging.getLogger("stripe").setLevel(
            logging.WARNING
        )  # it would log what it sends, e-mail addresses too
        self._automatic_tax = automatic_tax
        self._tax_code = tax_code
        self._http = stripe.AIOHTTPClient(timeout=TIMEOUT_SECONDS)
        self._stripe = stripe.StripeClient(
            api_key,
            stripe_version=API_VERSION,
            base_addresses={"api": api_base} if api_base else {},
            max_network_retries=MAX_RETRIES,
            http_client=self._http,
        )

    async def close(self) -> None:
        with contextlib.suppress(Exception):  # it has no connection to close unless it was used
            await self._http.close_async()  # type: ignore[no-untyped-call]

    async def create_session(self, sale: Sale) -> tuple[str, str]:
        """Make a page on which this sale can be paid; return the session's id and the page's address."""
        about = {"order_id": sale.order_id, "customer_id": sale.customer_id}
        item: dict[str, Any] = {"quantity": 1}
        if sale.stripe_price_id:
            item["price"] = sale.stripe_price_id
        else:
            product = {"name": sale.name} | ({"tax_code": self._tax_code} if self._tax_code else {})
            item["price_data"] = {
                "currency": "usd", "unit_amount": sale.price_cents, "product_data": product,
            } | ({"tax_behavior": "exclusive"} if self._automatic_tax else {})  # fmt: skip
        params: dict[str, Any] = {
            "mode": "payment",
            "line_items": [item],
            "client_reference_id": sale.order_id,
            "metadata": about,
            "payment_intent_data": {"metadata": about, "description": f"{sale.name}, order {sale.order_id}"},
            "success_url": sale.paid_url,
            "cancel_url": sale.left_url,
        }
        if self._automatic_tax:
            params["automatic_tax"] = {"enabled": True}
        if sale.email:
            params["customer_email"] = sale.email
            params["payment_intent_data"]["receipt_email"] = sale.email
        with _told_by_us():
            made = await self._stripe.v1.checkout.sessions.create_async(
                params,  # type: ignore[arg-type]  # the simulator refuses what the library's types do not know
                {"idempotency_key": sale.order_id},
            )
        assert made.url is not None
        return made.id, made.url

    async def session(self, session_id: str) -> SessionFacts:
        """Fetch a Checkout Session with its payment."""
        with _told_by_us():
            found = await self._stripe.v1.checkout.sessions.retrieve_async(
                session_id, {"expand": ["payment_intent.latest_charge"]}
            )
        return session_facts(found.to_dict())

    async def session_of_payment(self, payment_intent_id: str) -> SessionFacts | None:
        """Return the Checkout Session that led to a payment; None when it was paid in another way."""
        with _told_by_us():
            found = await self._stripe.v1.checkout.sessions.list_async(
                {
                    "payment_intent": payment_intent_id,
                    "limit": 1,
                    "expand": ["data.payment_intent.latest_charge"],
                }
            )
        return session_facts(found.data[0].to_dict()) if found.data else None

    async def payment_of(self, kind: str, object_id: str) -> str | None:
        """Return the payment intent that a refund, dispute or charge belongs to; None when there is none."""
        v1 = self._stripe.v1
        with _told_by_us():
            if kind == "refund":
                found: StripeObject = await v1.refunds.retrieve_async(object_id)
            elif kind == "dispute":
                found = await v1.disputes.retrieve_async(object_id)
            else:
                found = await v1.charges.retrieve_async(object_id)
        return id_of(found.to_dict().get("payment_intent"))

    async def reversals(self, payment_intent_id: str) -> list[ReversalFacts]:
        """Return what was, or was to be, taken back of a payment, in the order in which it began at Stripe."""
        with _told_by_us():
            refunds = await self._stripe.v1.refunds.list_async(
                {"payment_intent": payment_intent_id, "limit": PAGE}
            )
            disputes = await self._stripe.v1.disputes.list_async(
                {"payment_intent": payment_intent_id, "limit": PAGE}
            )
        if refunds.has_more or disputes.has_more:
            raise StripeUnavailable(f"{payment_intent_id} has more than {PAGE} refunds or disputes.")
        # Stripe lists the newest first, also within a second; of one second's, refunds are taken to be earlier.
        found = [refund_facts(one.to_dict()) for one in reversed(refunds.data)]
        found += [dispute_facts(one.to_dict()) for one in reversed(disputes.data)]
        return sorted(found, key=lambda one: one.created_at)

    async def refund(
        self, payment_intent_id: str, amount_cents: int | None, *, key: str, metadata: Mapping[str, str]
    ) -> str:
        """Pay back a part of a payment, or all that is left; return the refund's id. The same key refunds once."""
        params: dict[str, Any] = {"payment_intent": payment_intent_id, "metadata": dict(metadata)}
        if amount_cents is not None:
            params["amount"] = amount_cents
        with _told_by_us():
            made = await self._stripe.v1.refunds.create_async(
                params,  # type: ignore[arg-type]
                {"idempotency_key": key},
            )
        return made.id

    async def events(self, since: datetime) -> AsyncIterator[list[EventFacts]]:
        """Return the events that matter here, newest first, in pages."""
        params: dict[str, Any] = {
            "types": list(EVENT_TYPES),
            "created": {"gte": int(since.timestamp())},
            "limit": PAGE,
        }
        async for page in self._pages(self._stripe.v1.events.list_async, params):
            yield [event_facts(row, orjson.dumps(row).decode()) for row in page]

    async def balance_transactions(
        self, *, since: datetime | None = None, payout: str | None = None
    ) -> AsyncIterator[list[BalanceTransaction]]:
        """Return balance transactions, newest first, in pages: since an instant, or what a payout pays out."""
        params: dict[str, Any] = {"limit": PAGE}
        if since is not None:
            params["created"] = {"gte": int(since.timestamp())}
        if payout is not None:
            params["payout"] = payout
        async for page in self._pages(self._stripe.v1.balance_transactions.list_async, params):
            rows = parse_report(orjson.dumps(page).decode())
            yield [row.model_copy(update={"payout": payout}) if payout else row for row in rows]

    async def _pages(self, ask: Any, params: dict[str, Any]) -> AsyncIterator[list[dict[str, Any]]]:
        after: dict[str, str] = {}
        for _ in range(MAX_PAGES):
            with _told_by_us():
                page = await ask(params | after)
            rows = [row.to_dict() for row in page.data]
            if rows:
                yield rows
            if not page.has_more:
                return
            after = {"starting_after": rows[-1]["id"]}
        raise StripeUnavailable(f"Stripe has more than {MAX_PAGES} pages of these.")


def verified_event(
    payload: bytes, signature: str | None, secrets: Sequence[str], tolerance_seconds: int
) -> EventFacts:
    """Return what an event says, once one of the secrets has signed it lately. Raises ForgedEvent."""
    import stripe

    if not signature:
        raise ForgedEvent("The Stripe-Signature header is missing.")
    for secret in secrets:
        try:
            event = stripe.Webhook.construct_event(payload, signature, secret, tolerance_seconds)
            return event_facts(event.to_dict(), payload.decode())
        except stripe.SignatureVerificationError:
            continue
        except Exception as error:  # whatever the library, or we, trip over
            raise ForgedEvent("The body is no snapshot event of Stripe's.") from error
    raise ForgedEvent("No secret that is known here signed this body lately.")


@contextlib.contextmanager
def _told_by_us() -> Iterator[None]:
    """Raise what the library raises as ours. Its words may quote what it was sent: only codes and ids pass."""
    import stripe

    try:
        yield
    except stripe.StripeError as error:
        kind = type(error).__name__
        known = (kind, error.http_status, error.code, getattr(error, "param", None))
        told = f"{' '.join(str(part) for part in known if part)}, request {error.request_id or 'unknown'}"
        if isinstance(error, stripe.InvalidRequestError | stripe.CardError | stripe.IdempotencyError):
            raise StripeRefused(f"Stripe refused: {told}.") from error
        raise StripeUnavailable(f"Stripe did not do it: {told}.") from error
