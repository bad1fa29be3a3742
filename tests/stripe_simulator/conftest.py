"""The real `stripe` library on the stand-in."""

from collections.abc import Callable
from typing import Any

import pytest
from stripe import StripeClient

from darktree_stripe_simulator.client import StripeStandIn
from darktree_stripe_simulator.settings import VERSION


@pytest.fixture
def api(stripe: StripeStandIn) -> StripeClient:
    """Stripe's own library, talking to the stand-in."""
    addresses: Any = {"api": stripe.url, "files": stripe.url}
    return StripeClient(stripe.key, base_addresses=addresses, stripe_version=VERSION, max_network_retries=0)


@pytest.fixture
def line_item() -> dict[str, Any]:
    """A bundle of $50."""
    return {
        "quantity": 1,
        "price_data": {"currency": "usd", "unit_amount": 5000, "product_data": {"name": "Solo"}},
    }


@pytest.fixture
def make_session(api: StripeClient, line_item: dict[str, Any]) -> Callable[..., str]:
    """Makes an open session for a bundle of $50, and returns its id."""

    def make(**more: Any) -> str:
        params: Any = {
            "mode": "payment",
            "success_url": "https://console.example/paid?session={CHECKOUT_SESSION_ID}",
            "line_items": [line_item],
            **more,
        }
        return api.v1.checkout.sessions.create(params).id

    return make
