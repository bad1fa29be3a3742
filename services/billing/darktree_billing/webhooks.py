"""Stripe's webhook: verified, written down, answered. What an event leads to is the inbox's, later.

The body is read here byte by byte as it came, for the signature is over those bytes.
"""

from dataclasses import dataclass

from fastapi import APIRouter, Depends, Request, Response
from pydantic import SecretStr
from starlette.requests import ClientDisconnect

from darktree_billing import events
from darktree_billing.errors import BuyingIsOff, ForgedEvent
from darktree_billing.metrics import WEBHOOKS
from darktree_billing.payments import verified_event
from darktree_billing.state import ThenWakeTheInbox
from darktree_kit.db import Session
from darktree_kit.errors import BadRequest, TooLarge

MAX_EVENT_BYTES = 1_000_000  # Stripe's largest are some tens of kilobytes

# Not in our own description: Stripe describes it, and docs/payments.md says how it is set up.
router = APIRouter(prefix="/webhooks", include_in_schema=False)


@dataclass(frozen=True)
class Signatures:
    """What Stripe signs with, the present secret and those before it, and how old a signature may be."""

    secrets: tuple[SecretStr, ...]
    tolerance_seconds: int


async def _body(request: Request) -> bytes:
    """Return the body as it came. Raises TooLarge before it is all in memory."""
    chunks, size = [], 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > MAX_EVENT_BYTES:
                raise TooLarge(f"An event has at most {MAX_EVENT_BYTES} bytes.")
            chunks.append(chunk)
    except ClientDisconnect as error:
        raise BadRequest("The body was cut off.") from error
    return b"".join(chunks)


@router.post("/stripe", dependencies=[ThenWakeTheInbox])
async def stripe(request: Request, session: Session, body: bytes = Depends(_body)) -> Response:
    """Take an event of Stripe's. It must be signed by one of the secrets that are set."""
    signatures: Signatures | None = request.app.state.signatures
    if signatures is None:
        WEBHOOKS.labels("off").inc()
        raise BuyingIsOff
    secrets = [secret.get_secret_value() for secret in signatures.secrets]
    try:
        event = verified_event(
            body, request.headers.get("stripe-signature"), secrets, signatures.tolerance_seconds
        )
    except ForgedEvent:
        WEBHOOKS.labels("forged").inc()
        raise
    is_new = await events.receive(session, event, "webhook")
    WEBHOOKS.labels("new" if is_new else "repeated").inc()
    return Response(status_code=200)
