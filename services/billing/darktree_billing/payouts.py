"""Payouts and balance transactions: what Stripe's balance did, taken into the books as the close wants it.

A balance transaction does not say with which payout it left. Stripe tells that the other way round, once it has
reconciled an automatic payout: by listing what the payout pays out.
"""

import logging
from datetime import datetime

from darktree_billing import balance
from darktree_billing.errors import StripeRefused
from darktree_billing.fulfilment import Shop

_log = logging.getLogger(__name__)


async def import_payout(shop: Shop, payout_id: str) -> int:
    """Take in what a payout pays out, as far as Stripe knows by now; return how many transactions were new."""
    try:
        return await _import(shop, payout=payout_id)
    except StripeRefused as error:
        # Of a manual payout Stripe cannot say what it pays out. The sweep finds the payout itself.
        _log.warning("a payout cannot be itemized", extra={"payout": payout_id, "error": error.message})
        return 0


async def import_since(shop: Shop, since: datetime) -> int:
    """Take in every balance transaction since an instant; return how many were new."""
    return await _import(shop, since=since)


async def _import(shop: Shop, *, since: datetime | None = None, payout: str | None = None) -> int:
    count = 0
    async for page in shop.payments.balance_transactions(since=since, payout=payout):
        async with shop.database.sessions.begin() as session:
            count += (await balance.import_transactions(session, shop.ledger, page)).imported
    return count
