"""What models cost, as billing says: read again every few seconds, and too old after a minute.

Prices are fixed at admission, in the hold; so a price change reaches new requests within seconds and running ones
never.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from darktree_billing.schemas import Catalog, ModelView
from darktree_gateway.errors import MeteringUnavailable
from darktree_kit.clock import Monotonic, monotonic
from darktree_kit.errors import ApiError

MAX_AGE_SECONDS = 60.0
RETRY_SECONDS = 0.5  # billing often starts beside the gateway, which serves nothing before it knows prices
_log = logging.getLogger(__name__)


class Prices:
    """The models that are sold, by id."""

    def __init__(self, fetch: Callable[[], Awaitable[Catalog]], now: Monotonic = monotonic) -> None:
        self._fetch = fetch
        self._now = now
        self._models: dict[str, ModelView] = {}
        self._read_at = float("-inf")

    def model(self, model_id: str) -> ModelView | None:
        """Return a model, or None when it is not sold. Raises MeteringUnavailable when that is not known."""
        if self._now() - self._read_at > MAX_AGE_SECONDS:
            raise MeteringUnavailable
        return self._models.get(model_id)

    async def refresh(self) -> None:
        """Read the catalog. Raises what billing does."""
        catalog = await self._fetch()
        self._models = {model.id: model for model in catalog.models}
        self._read_at = self._now()

    async def watch(self, every_seconds: float) -> None:
        """Refresh for as long as the task lives."""
        while True:
            try:
                await self.refresh()
                await asyncio.sleep(every_seconds)
            except (ApiError, ValueError) as error:
                _log.warning("prices could not be read", extra={"error": str(error)[:200]})
                await asyncio.sleep(min(every_seconds, RETRY_SECONDS))
