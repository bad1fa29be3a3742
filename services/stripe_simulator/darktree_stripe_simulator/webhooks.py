"""Events on their way to the webhook: signed as Stripe signs, and late, twice, out of order or never on demand."""

import asyncio
import hashlib
import hmac
import random
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import aiohttp
import orjson
from pydantic import BaseModel, ConfigDict, Field

from darktree_stripe_simulator.account import Account, Object

TIMEOUT_SECONDS = 20.0
MAX_AT_ONCE = 64
USER_AGENT = "Stripe/1.0 (+https://stripe.com/docs/webhooks)"


class Rules(BaseModel):
    """How events are delivered when they happen.

    `delay_seconds` gathers what happens meanwhile, and `order` is that of what goes out together; each event is sent
    `duplicates` times more; the next `drop` events, and every event of `drop_types`, are never sent.
    """

    model_config = ConfigDict(extra="forbid")

    mode: Literal["automatic", "manual"] = "automatic"
    delay_seconds: float = Field(default=0, ge=0, le=3_600)
    order: Literal["in_order", "reversed", "random"] = "in_order"
    duplicates: int = Field(default=0, ge=0, le=20)
    drop: int = Field(default=0, ge=0, le=10_000)
    drop_types: list[str] = Field(default=[], max_length=100)


def payload_of(event: Object) -> bytes:
    """Return the body that is sent: indented, so that nobody verifies one that was parsed and written again."""
    return orjson.dumps(event, option=orjson.OPT_INDENT_2)


def signature(payload: bytes, timestamp: int, secrets: Iterable[str]) -> str:
    """Return the `Stripe-Signature` header (docs.stripe.com/webhooks#verify-manually).

    Every secret signs as v1; test mode adds a v0 that nobody may accept.
    """
    signed = b"%d.%s" % (timestamp, payload)
    parts = [f"v1={hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()}" for secret in secrets]
    fake = hashlib.sha256(signed).hexdigest()
    return ",".join([f"t={timestamp}", *parts, f"v0={fake}"])


class Courier:
    """Carries events to the webhook. What is on its way is part of the account, so a restart goes on with it."""

    def __init__(self, account: Account) -> None:
        self.rules = Rules(mode="manual" if account.settings.delivery == "manual" else "automatic")
        self.wake = asyncio.Event()
        self._account = account
        self._session: aiohttp.ClientSession | None = None
        account.on_event = self._on_event

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def headers_of(self, payload: bytes, signed_seconds_ago: int = 0) -> dict[str, str]:
        timestamp = self._account.now() - self._account.advanced_seconds - signed_seconds_ago
        return {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": signature(payload, timestamp, self._account.settings.webhook_secrets),
            "User-Agent": USER_AGENT,
        }

    async def send_due(self) -> bool:
        """Send what is due, one after the other. Returns whether there was anything."""
        instant = self._account.instant()
        ready = [item for item in self._account.deliveries if item["at"] <= instant]
        if not ready:
            return False
        self._account.deliveries = [item for item in self._account.deliveries if item["at"] > instant]
        if self.rules.order == "reversed":
            ready.reverse()
        elif self.rules.order == "random":
            random.shuffle(ready)
        for item in ready:
            status = await self._send(item["event"])
            if not _is_taken(status):
                self._again(item)
        return True

    async def deliver(
        self, events: Sequence[str], *, times: int, at_once: bool, signed_seconds_ago: int
    ) -> list[dict[str, Any]]:
        """Send these events now, in this order or all at the same time, and return how each was answered."""
        ids = [id for id in events for _ in range(times)]
        gate = asyncio.Semaphore(MAX_AT_ONCE if at_once else 1)

        async def one(id: str) -> dict[str, Any]:
            async with gate:
                return {"event": id, "status": await self._send(id, signed_seconds_ago)}

        return list(await asyncio.gather(*(one(id) for id in ids)))

    def undelivered(self) -> list[str]:
        """Return the events that the webhook has not taken, the oldest first."""
        return [
            event["id"]
            for event in reversed(list(self._account.all("event")))
            if not self._account.private[event["id"]].get("taken")
        ]

    def _on_event(self, event: Object) -> None:
        if self.rules.mode == "manual" or not self._account.settings.webhook_url:
            return
        if self.rules.drop or event["type"] in self.rules.drop_types:
            self.rules.drop = max(self.rules.drop - 1, 0)
            return
        at = self._account.instant() + self.rules.delay_seconds
        for _ in range(1 + self.rules.duplicates):
            self._account.deliveries.append({"event": event["id"], "at": at, "attempt": 0})
        self.wake.set()

    def _again(self, item: dict[str, Any]) -> None:
        pauses = self._account.settings.retry_seconds
        if item["attempt"] < len(pauses):
            at = self._account.instant() + pauses[item["attempt"]]
            self._account.deliveries.append({**item, "at": at, "attempt": item["attempt"] + 1})

    async def _send(self, id: str, signed_seconds_ago: int = 0) -> int:
        """Return the status of the answer, 0 when there was none."""
        event = self._account.objects[id]
        payload = payload_of(event)
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
            self._session = aiohttp.ClientSession(timeout=timeout)
        try:
            async with self._session.post(
                self._account.settings.webhook_url,
                data=payload,
                headers=self.headers_of(payload, signed_seconds_ago),
                allow_redirects=False,
            ) as answer:
                await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return 0
        if _is_taken(answer.status):
            self._account.private[id]["taken"] = True
            event["pending_webhooks"] = 0
        return answer.status


def _is_taken(status: int) -> bool:
    return 200 <= status < 300
