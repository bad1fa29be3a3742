"""What is granted: never more than is left, never more than fits, and refused only when nothing fits."""

import asyncio
import uuid
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from darktree_billing.schemas import ModelView
from darktree_gateway import requests
from darktree_gateway.admission import Admission, Admitted, limit_headers
from darktree_gateway.auth import Caller
from darktree_gateway.errors import go_duration
from darktree_gateway.lanes import Lane
from darktree_kit.errors import ApiError
from darktree_ledger.schemas import Hold, Result

CONTEXT = 200
PRICE = 10
LANE = Lane("lane", "Standard", None, "m", "VLLM", CONTEXT, ("http://nowhere",))
MODEL = ModelView(
    id="m",
    display_name="M",
    prompt_price_nanos=PRICE,
    completion_price_nanos=PRICE,
    default_completion_tokens=50,
    created=0,
)


@dataclass
class Account:
    """The ledger's rule of holds, as its SQL has it, for one customer; and an engine that counts."""

    cap: int
    used: int = 0
    held: int = 0
    balance: int = 10**9
    prompt: int = 10
    holds: list[Hold] = field(default_factory=list)
    running: set[Any] = field(default_factory=set)
    counted: int = 0

    def check_open(self, customer_id: str) -> None:
        pass

    async def hold(self, hold: Hold) -> Result:
        self.holds.append(hold)
        left = self.cap - self.used
        least = hold.prompt_tokens if hold.exact else min(1, hold.prompt_tokens)
        minimum = min(hold.step_tokens, hold.completion_tokens)
        if least + minimum > left:
            return self._refused("cap")
        if (least + minimum) * PRICE > self.balance:
            return self._refused("balance")
        target = hold.completion_tokens
        if hold.exact:
            target = min(target, left - least, self.balance // PRICE - least)
            if target < hold.completion_tokens:
                target -= target % hold.step_tokens
        tokens = hold.prompt_tokens + target
        if tokens > left - self.held or tokens * PRICE > self.balance - self.held * PRICE:
            return self._refused("in_flight" if hold.exact else "inexact")
        return Result(outcome="done", completion_tokens=target, **self._row())

    def _refused(self, reason: Any) -> Result:
        return Result(outcome="refused", reason=reason, **self._row())

    def _row(self) -> dict[str, Any]:
        return {
            "cap_tokens": self.cap,
            "day_tokens": self.used,
            "day_held_tokens": self.held,
            "reset_seconds": 3600,
        }

    async def count(self, lane: Lane, ask: requests.Ask) -> tuple[list[int], int]:
        self.counted += 1
        return [self.prompt] * len(ask.prompt_tokens), CONTEXT


def admit(account: Account, lane: Lane = LANE, /, **options: Any) -> Admitted:
    body = {"model": "m", "messages": [{"role": "user", "content": "x" * 20}]} | options
    ask = requests.read(orjson.dumps(body), "chat")
    admission = Admission(account, account, wait_seconds=0.05, ttl_seconds=60)  # type: ignore[arg-type]
    return asyncio.run(admission.admit(uuid.uuid4(), Caller("ann", "k"), ask, lane, MODEL))


@given(
    cap=st.integers(0, 400),
    used=st.integers(0, 400),
    held=st.integers(0, 100),
    prompt=st.integers(1, 100),
    answers=st.integers(1, 5),
    asked=st.none() | st.integers(1, 100),
    tokens_paid=st.integers(0, 400),
)
def test_what_an_engine_may_generate_always_fits_into_what_is_left(
    cap: int, used: int, held: int, prompt: int, answers: int, asked: int | None, tokens_paid: int
) -> None:
    assume(used + held <= cap)
    account = Account(cap, used, held, balance=tokens_paid * PRICE, prompt=prompt)
    options = {} if asked is None else {"max_tokens": asked}
    left = min(cap - used, tokens_paid)
    admitted, error = None, None
    try:
        admitted = admit(account, n=answers, **options)
    except ApiError as refusal:
        error = refusal
    if admitted is None:
        assert error is not None
        assert error.answer_status == 429
        assert error.headers["x-ratelimit-limit-tokens"] == str(cap)
        if error.answer_code == "in_flight_limit_exceeded":
            assert held
        else:
            assert prompt + answers > left
        return
    wanted = asked if asked is not None else MODEL.default_completion_tokens
    assert 1 <= admitted.max_tokens <= wanted
    assert prompt + admitted.max_tokens <= CONTEXT
    assert prompt + admitted.max_tokens * answers <= left - held
    assert admitted.clamped == (admitted.max_tokens < min(wanted, CONTEXT - prompt))
    if admitted.clamped:  # one more for each answer would not have fitted
        assert prompt + (admitted.max_tokens + 1) * answers > left


def test_a_request_that_fits_by_its_bound_is_never_counted() -> None:
    account = Account(cap=100_000)
    assert admit(account, max_tokens=10).max_tokens == 10
    assert (account.counted, len(account.holds), account.holds[0].exact) == (0, 1, False)


def test_a_bound_that_does_not_fit_the_context_is_counted_before_anything_is_held() -> None:
    account = Account(cap=100_000)
    assert admit(account, max_tokens=150).max_tokens == 150
    assert (account.counted, len(account.holds), account.holds[0].exact) == (1, 1, True)


def test_an_answer_gets_what_the_prompt_leaves_of_the_context() -> None:
    account = Account(cap=100_000, prompt=180)
    messages = [{"role": "user", "content": "x" * 160}]
    assert admit(account, messages=messages).max_tokens == 20
    assert admit(account, messages=messages, max_tokens=21).max_tokens == 20
    with pytest.raises(ApiError) as caught:
        admit(account, messages=messages, max_tokens=CONTEXT + 1)
    assert (caught.value.answer_code, caught.value.param) == ("context_length_exceeded", "max_tokens")
    account.prompt = CONTEXT
    with pytest.raises(ApiError, match="resulted in 200 tokens"):
        admit(account, messages=messages)


def test_the_limits_are_those_of_the_row_that_enforces_them() -> None:
    row = Result(outcome="done", cap_tokens=100, day_tokens=30, day_held_tokens=20, reset_seconds=29_523)
    assert limit_headers(row) == {
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "50",
        "x-ratelimit-reset-tokens": "8h12m3s",
    }
    assert limit_headers(Result(outcome="refused", reason="unknown_customer")) == {}
    assert [go_duration(seconds) for seconds in (0, 59, 60, 3600, -5)] == [
        "0s",
        "59s",
        "1m0s",
        "1h0m0s",
        "0s",
    ]


def test_more_tokens_than_the_ledger_counts_are_refused_before_it_is_asked() -> None:
    lane = replace(LANE, context_tokens=1_000_000)
    account = Account(cap=10**8)
    with pytest.raises(ApiError) as refused:
        admit(account, lane, n=101, max_tokens=1_000_000)
    assert refused.value.answer_status == 400
    assert account.holds == []
