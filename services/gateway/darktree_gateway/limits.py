"""How many requests a key may send, in a minute and at once: what its plan says, or its customer's own limits.

A key's minute is a bucket that fills evenly (the generic cell rate algorithm: one instant says how full it is), as
OpenAI's limits do: a limit of 60 lets 60 come together, and then one a second. Each gateway process counts by itself
(docs/decisions/0024-limits-of-requests-are-each-gateways-own.md); what may be spent is limited exactly, by the ledger.
"""

import math
from dataclasses import dataclass

from darktree_billing.schemas import VerifiedKey
from darktree_gateway import metrics
from darktree_gateway.errors import RequestLimitReached, precise_duration
from darktree_kit.clock import Monotonic, monotonic

MINUTE_SECONDS = 60.0
MAX_KEYS = 10_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What one key may send; None without a limit."""

    requests_per_minute: int | None
    concurrent_requests: int | None


def limits_of(key: VerifiedKey) -> Limits | None:
    """Return what billing says of a key; None when it may send any number."""
    if key.requests_per_minute is None and key.concurrent_requests is None:
        return None
    return Limits(key.requests_per_minute, key.concurrent_requests)


@dataclass(slots=True)
class Use:
    """What one key is sending."""

    running: int = 0
    full_at: float = 0.0  # monotonic seconds: when its minute is whole again


class KeyLimits:
    """What every key with a limit is sending through this process."""

    def __init__(self, now: Monotonic = monotonic) -> None:
        self._now = now
        self._uses: dict[str, Use] = {}

    def enter(self, key_id: str, limits: Limits) -> tuple[Use, dict[str, str]]:
        """Count a request that begins; leave its use when it ends. Returns also what headers say of the key's minute.

        Raises RequestLimitReached: then nothing was counted.
        """
        use = self._uses.get(key_id) or self._new(key_id)
        now = self._now()
        most = limits.concurrent_requests
        if most is not None and use.running >= most:
            metrics.LIMITED.labels("concurrency").inc()
            raise RequestLimitReached.at_once(most, _headers(limits, use, now))
        if limits.requests_per_minute is not None:
            each = MINUTE_SECONDS / limits.requests_per_minute
            behind = max(use.full_at, now) + each - now
            if (
                behind > MINUTE_SECONDS + each / 1000
            ):  # a thousandth, as floats add up to a little more than a minute
                metrics.LIMITED.labels("requests").inc()
                wait_seconds = behind - MINUTE_SECONDS
                raise RequestLimitReached.in_a_minute(
                    limits.requests_per_minute, wait_seconds, _headers(limits, use, now)
                )
            use.full_at = now + behind
        use.running += 1
        return use, _headers(limits, use, now)

    def _new(self, key_id: str) -> Use:
        if len(self._uses) >= MAX_KEYS:
            now = self._now()
            self._uses = {key: use for key, use in self._uses.items() if use.running or use.full_at > now}
        use = self._uses[key_id] = Use()
        return use


def _headers(limits: Limits, use: Use, now: float) -> dict[str, str]:
    per_minute = limits.requests_per_minute
    if per_minute is None:
        return {}
    missing_seconds = max(0.0, use.full_at - now)
    remaining = math.floor(per_minute * (1 - missing_seconds / MINUTE_SECONDS) + 0.001)
    return {
        "x-ratelimit-limit-requests": str(per_minute),
        "x-ratelimit-remaining-requests": str(max(0, remaining)),
        "x-ratelimit-reset-requests": precise_duration(missing_seconds),
    }
