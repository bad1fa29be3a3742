"""What Stripe says of a payment, read out of its objects as the pinned API version shapes them. Pure."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True)
class Sale:
    """What a Checkout Session is made from. `key` makes a repetition the same session."""

    order_id: str
    customer_id: str
    email: str | None
    name: str
    price_cents: int
    stripe_price_id: str | None
    paid_url: str
    left_url: str


@dataclass(frozen=True)
class SessionFacts:
    """A Checkout Session as it is now, with its payment."""

    id: str
    order_id: str | None
    status: str
    payment_status: str
    currency: str
    subtotal_cents: int
    tax_cents: int
    total_cents: int
    payment_intent_id: str | None
    intent_status: str | None
    received_cents: int
    charge_id: str | None
    receipt_url: str | None
    failure: str | None


@dataclass(frozen=True)
class ReversalFacts:
    """A refund or a dispute as it is now. `taken_cents` have left our balance for it and did not come back."""

    id: str
    kind: str
    amount_cents: int
    currency: str
    status: str
    reason: str | None
    created_at: datetime
    evidence_due_at: datetime | None
    taken_cents: int


@dataclass(frozen=True)
class EventFacts:
    """An event: what changed, and the payment that it hints at. `payload` is what was received."""

    id: str
    type: str
    api_version: str | None
    created_at: datetime
    object_kind: str
    object_id: str | None
    payload: str


def session_facts(found: dict[str, Any]) -> SessionFacts:
    """Return what a Checkout Session says whose payment intent and latest charge are expanded."""
    intent = found.get("payment_intent") or {}
    assert isinstance(intent, dict)  # expanded
    charge = intent.get("latest_charge") or {}
    failure = (intent.get("last_payment_error") or {}).get("code")
    return SessionFacts(
        id=found["id"],
        order_id=found.get("client_reference_id"),
        status=found["status"],
        payment_status=found["payment_status"],
        currency=found["currency"],
        subtotal_cents=found["amount_subtotal"],
        tax_cents=(found.get("total_details") or {}).get("amount_tax") or 0,
        total_cents=found["amount_total"],
        payment_intent_id=intent.get("id"),
        intent_status=intent.get("status"),
        received_cents=intent.get("amount_received") or 0,
        charge_id=charge.get("id"),
        receipt_url=charge.get("receipt_url"),
        failure=failure,
    )


def refund_facts(found: dict[str, Any]) -> ReversalFacts:
    """Return what a refund says."""
    return ReversalFacts(
        id=found["id"],
        kind="refund",
        amount_cents=found["amount"],
        currency=found["currency"],
        status=found["status"],
        reason=found.get("failure_reason") or found.get("reason"),
        created_at=_instant(found["created"]),
        evidence_due_at=None,
        taken_cents=0 if found["status"] in {"failed", "canceled"} else found["amount"],
    )


def dispute_facts(found: dict[str, Any]) -> ReversalFacts:
    """Return what a dispute says."""
    # What was withdrawn and given back stands in the balance transactions, whose sum therefore says where the money is.
    net_cents = sum(row["amount"] for row in found["balance_transactions"])
    due = found["evidence_details"].get("due_by")
    return ReversalFacts(
        id=found["id"],
        kind="dispute",
        amount_cents=found["amount"],
        currency=found["currency"],
        status=found["status"],
        reason=found["reason"],
        created_at=_instant(found["created"]),
        evidence_due_at=_instant(due) if due else None,
        taken_cents=max(-net_cents, 0),
    )


def event_facts(found: dict[str, Any], payload: str) -> EventFacts:
    """Return what an event says, with what was received. Raises KeyError when it is none."""
    about = found["data"]["object"]
    return EventFacts(
        id=found["id"],
        type=found["type"],
        api_version=found.get("api_version"),
        created_at=_instant(found["created"]),
        object_kind=about.get("object", ""),
        object_id=about.get("id"),
        payload=payload,
    )


def id_of(field: Any) -> str | None:
    """Return the id in a field that may be expanded."""
    found = field.get("id") if isinstance(field, dict) else field
    return found if isinstance(found, str) else None


def _instant(unix_seconds: int) -> datetime:
    return datetime.fromtimestamp(unix_seconds, UTC)
