"""May this request be served, and how much may it generate: decided by the ledger, with the cheapest question first.

First a hold of a bound that needs no counting. When the ledger says that only an exact count can tell, or when the
bound does not fit into the model's context, the engine counts the prompt, and an exact hold is asked for; that one the
ledger may clamp. So the last request of a day ends exactly at the cap.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass
from uuid import UUID

from darktree_billing.schemas import ModelView
from darktree_gateway import metrics
from darktree_gateway.auth import Caller
from darktree_gateway.errors import (
    ContextLengthExceeded,
    CreditExhausted,
    DailyCapReached,
    InFlightLimitExceeded,
    MeteringUnavailable,
    go_duration,
)
from darktree_gateway.fields import wrong_value
from darktree_gateway.lanes import Lane
from darktree_gateway.metering import Held, Metering
from darktree_gateway.requests import Ask
from darktree_gateway.upstream import Upstream
from darktree_kit.clock import monotonic
from darktree_kit.errors import ApiError
from darktree_kit.ids import uuid7
from darktree_ledger.schemas import MAX_TOKENS, Hold, Result, Show

FIRST_PAUSE_SECONDS = 0.02
MAX_PAUSE_SECONDS = 0.32
MAX_WAITING_PER_CUSTOMER = 64

Headers = dict[str, str]


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that may be served: what each answer may have, and the account as it is with the hold."""

    held: Held
    max_tokens: int
    clamped: bool
    account: Result


class Admission:
    """Asks the ledger for holds."""

    def __init__(
        self, metering: Metering, upstream: Upstream, *, wait_seconds: float, ttl_seconds: int
    ) -> None:
        self._metering = metering
        self._upstream = upstream
        self._wait_seconds = wait_seconds
        self._ttl_seconds = ttl_seconds
        self._waiting: Counter[str] = Counter()

    async def admit(self, hold_id: UUID, caller: Caller, ask: Ask, lane: Lane, model: ModelView) -> Admitted:
        """Hold what the request may cost. Raises what refuses it, with the account's limits in its headers."""
        self._metering.check_open(caller.customer_id)
        each = ask.max_tokens if ask.max_tokens is not None else model.default_completion_tokens
        if ask.max_tokens is not None and ask.max_tokens > lane.context_tokens:
            raise ContextLengthExceeded(
                f"max_tokens is too large: {ask.max_tokens}. This model's maximum context length is "
                f"{lane.context_tokens} tokens, which prompt and answer share.",
                param="max_tokens",
            )
        if each * ask.answers > MAX_TOKENS:  # else the ledger would refuse it, with whatever is in its batch
            raise wrong_value("n", f"more than {MAX_TOKENS} tokens, all answers together.")
        request = _Request(hold_id, caller, ask, lane, model, self._ttl_seconds)
        if not ask.exact and not ask.must_count and max(ask.prompt_tokens) + each <= lane.context_tokens:
            result = await self._metering.hold(request.hold(each))
            if result.reason != "inexact":
                return self._granted(request, each, result)
        context_tokens = lane.context_tokens
        if not ask.exact:
            counts, served_tokens = await self._upstream.count(lane, ask)
            ask.prompt_tokens, ask.exact = counts, True
            context_tokens = min(context_tokens, served_tokens)
        each = _fit(ask, each, context_tokens)
        return self._granted(request, each, await self._hold_in_turn(request, each))

    async def _hold_in_turn(self, request: "_Request", each: int) -> Result:
        """Hold, waiting a little while what is left is only held by the customer's other requests."""
        result = await self._metering.hold(request.hold(each))
        customer_id = request.caller.customer_id
        if result.reason != "in_flight" or self._waiting[customer_id] >= MAX_WAITING_PER_CUSTOMER:
            return result
        self._waiting[customer_id] += 1
        try:
            pause, until = FIRST_PAUSE_SECONDS, monotonic() + self._wait_seconds
            while result.reason == "in_flight" and monotonic() + pause <= until:
                await asyncio.sleep(pause)
                pause = min(MAX_PAUSE_SECONDS, 2 * pause)
                result = await self._metering.hold(request.hold(each))
            return result
        finally:
            self._waiting[customer_id] -= 1
            if not self._waiting[customer_id]:
                del self._waiting[customer_id]

    def _granted(self, request: "_Request", each: int, result: Result) -> Admitted:
        if result.outcome != "done" or result.completion_tokens is None:
            raise _refusal(request, each, result)
        max_tokens = result.completion_tokens // request.ask.answers
        if clamped := max_tokens < each:
            metrics.CLAMPED.inc()
        now = monotonic()
        held = Held(request.hold_id, uuid7(), request.caller.customer_id, request.lane.name, now, now)
        self._metering.running.add(held)
        return Admitted(held, max_tokens, clamped, result)

    async def limits(self, caller: Caller) -> Headers:
        """Return the rate-limit headers of a customer; nothing when the ledger does not say."""
        try:
            return limit_headers(
                await self._metering.ledger.apply(
                    Show.model_construct(op="show", customer_id=caller.customer_id)
                )
            )
        except ApiError:
            return {}


@dataclass(frozen=True, slots=True)
class _Request:
    hold_id: UUID
    caller: Caller
    ask: Ask
    lane: Lane
    model: ModelView
    ttl_seconds: int

    def hold(self, each: int) -> Hold:
        ask = self.ask
        return Hold(
            hold_id=self.hold_id,
            customer_id=self.caller.customer_id,
            key_id=self.caller.key_id,
            model=ask.model,
            lane=self.lane.name,
            prompt_tokens=sum(ask.prompt_tokens),
            completion_tokens=each * ask.answers,
            step_tokens=ask.answers,
            exact=ask.exact,
            prompt_price_nanos=self.model.prompt_price_nanos,
            completion_price_nanos=self.model.completion_price_nanos,
            ttl_seconds=self.ttl_seconds,
        )


def _fit(ask: Ask, each: int, context_tokens: int) -> int:
    """Return what each answer may have: by vLLM's rule, what was asked for or what the prompt leaves of the context.

    Raises ContextLengthExceeded when it leaves nothing of what is to be generated.
    """
    longest = max(ask.prompt_tokens)
    if longest + min(1, each) > context_tokens:
        raise ContextLengthExceeded.of(context_tokens, longest, ask.prompt_param)
    return min(each, context_tokens - longest)


def _refusal(request: _Request, each: int, result: Result) -> ApiError:
    metrics.HOLDS_REFUSED.labels(result.reason or result.outcome).inc()
    ask, cap_tokens = request.ask, result.cap_tokens or 0
    error: ApiError
    if result.reason == "cap":
        error = DailyCapReached(
            ask.model,
            cap=cap_tokens,
            used=result.day_tokens or 0,
            requested=sum(ask.prompt_tokens) + each * ask.answers,
            never_fits=ask.exact and sum(ask.prompt_tokens) + min(1, each) * ask.answers > cap_tokens,
            reset_seconds=result.reset_seconds or 0,
        )
    elif result.reason == "balance":
        error = CreditExhausted()
    elif result.reason == "in_flight":
        error = InFlightLimitExceeded()
    else:  # an account that the ledger does not know, or an id used twice: nothing that a customer can mend
        error = MeteringUnavailable()
    error.headers |= limit_headers(result)
    return error


def limit_headers(account: Result) -> Headers:
    """Return `x-ratelimit-*` of the row that enforces them."""
    if account.cap_tokens is None:
        return {}
    remaining = account.cap_tokens - (account.day_tokens or 0) - (account.day_held_tokens or 0)
    return {
        "x-ratelimit-limit-tokens": str(account.cap_tokens),
        "x-ratelimit-remaining-tokens": str(max(0, remaining)),
        "x-ratelimit-reset-tokens": go_duration(account.reset_seconds or 0),
    }
