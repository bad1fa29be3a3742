"""Selling: everything that buying needs in a running billing service, or nothing while no key for Stripe is set."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from pydantic import SecretStr

from darktree_billing import payment_health, sweep
from darktree_billing.checkout import Seller
from darktree_billing.errors import BuyingIsOff
from darktree_billing.fulfilment import MAX_LOOKS, Shop
from darktree_billing.inbox import Inbox
from darktree_billing.payments import Payments
from darktree_billing.settings import Settings, webhook_secrets
from darktree_billing.webhooks import Signatures
from darktree_kit.db import Database
from darktree_ledger.client import LedgerClient

CONNECTIONS_FOR_ADMINISTRATORS = 4  # and for the sweep


@asynccontextmanager
async def selling(
    app: FastAPI, settings: Settings, database: Database, ledger: LedgerClient
) -> AsyncIterator[None]:
    """Sell, handle events and sweep for as long as the context lasts."""
    app.state.shop = app.state.signatures = app.state.inbox = None
    if settings.stripe_api_key is None:
        yield
        return
    payments = Payments(
        settings.stripe_api_key.get_secret_value(),
        api_base=settings.stripe_api_base,
        automatic_tax=settings.stripe_automatic_tax,
        tax_code=settings.stripe_tax_code,
    )
    # While Stripe is slow, connections wait with it: key verification must not wait for those.
    shop_database = Database(
        settings.database_url.get_secret_value(),
        pool_size=settings.stripe_workers + MAX_LOOKS + CONNECTIONS_FOR_ADMINISTRATORS,
    )
    shop = Shop(shop_database, ledger, payments)
    inbox = Inbox(shop)
    app.state.shop, app.state.signatures, app.state.inbox = shop, _signatures(settings), inbox
    tasks = [asyncio.create_task(payment_health.watch(database))]
    if settings.stripe_workers:
        tasks += [asyncio.create_task(inbox.work()) for _ in range(settings.stripe_workers)]
        tasks.append(asyncio.create_task(sweep.watch(shop, inbox.wake, settings)))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await payments.close()
        await shop_database.close()


def _signatures(settings: Settings) -> Signatures:
    secrets = webhook_secrets(settings.stripe_webhook_secrets)
    return Signatures(tuple(map(SecretStr, secrets)), settings.stripe_webhook_tolerance_seconds)


async def _maybe_shop(request: Request) -> Shop | None:
    shop: Shop | None = request.app.state.shop
    return shop


async def _shop(request: Request) -> Shop:
    shop: Shop | None = request.app.state.shop
    if shop is None:
        raise BuyingIsOff
    return shop


async def _seller(request: Request) -> Seller:
    # Without a public address people come from this machine, by whatever address they used.
    console = request.app.state.public_url or str(request.base_url).rstrip("/")
    return Seller(name=request.app.state.seller_name, console=console)


MaybeShop = Annotated[Shop | None, Depends(_maybe_shop)]
TheShop = Annotated[Shop, Depends(_shop)]
TheSeller = Annotated[Seller, Depends(_seller)]
