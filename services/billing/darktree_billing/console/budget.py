"""The budget guide: what each bundle gives, and how far it goes at a given size of request. Pure, and all integers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import HTMLResponse

from darktree_billing.console.shell import TheMember, render
from darktree_billing.plans import Model, Plans, max_spend_per_day_nanos, tokens_bought
from darktree_billing.state import ThePlansFile
from darktree_kit.money import charge_nanos

MAX_REQUEST_TOKENS = 1_000_000
MAX_REQUESTS = 10_000_000

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class Bundle:
    """A row of the plan table, at the price of the dearest token of the cheapest model."""

    id: str
    name: str
    price_nanos: int
    tokens: int | None
    cap_tokens: int
    max_spend_nanos: int
    days_at_cap: int | None


@dataclass(frozen=True)
class Forecast:
    """What a bundle gives somebody who sends so many requests a day of one size."""

    name: str
    price_nanos: int
    requests: int | None
    requests_a_day: int
    days: int | None
    fits: bool


@dataclass(frozen=True)
class Load:
    """The size of a request, and how many there are in a day."""

    prompt_tokens: int
    completion_tokens: int
    a_day: int

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


def rows(plans: Plans) -> list[Bundle]:
    """Return the plan table."""
    price = min(model.dearest_price_nanos for model in plans.models)
    found = []
    for plan in plans.plans:
        tokens, cap = tokens_bought(plan.price_nanos, price), plan.default_cap_tokens
        found.append(
            Bundle(
                id=plan.id,
                name=plan.display_name,
                price_nanos=plan.price_nanos,
                tokens=tokens,
                cap_tokens=cap,
                max_spend_nanos=max_spend_per_day_nanos(cap, price),
                days_at_cap=None if tokens is None or not cap else tokens // cap,
            )
        )
    return found


def forecasts(plans: Plans, model: Model, size: Load) -> list[Forecast]:
    """Return how far each bundle goes. `fits` says whether the bundle's cap lets a whole day's requests through."""
    cost = charge_nanos(
        size.prompt_tokens, size.completion_tokens, model.prompt_price_nanos, model.completion_price_nanos
    )
    found = []
    for plan in plans.plans:
        most = plan.default_cap_tokens // max(size.tokens, 1)
        daily = min(size.a_day, most)
        total = plan.price_nanos // cost if cost else None
        days = None if total is None or not daily else total // daily
        found.append(Forecast(plan.display_name, plan.price_nanos, total, daily, days, size.a_day <= most))
    return found


@router.get("/console/budget")
async def show_guide(
    request: Request,
    _: TheMember,
    plans_file: ThePlansFile,
    model: Annotated[str, Query(max_length=64)] = "",
    prompt: Annotated[str, Query(max_length=20)] = "300",
    completion: Annotated[str, Query(max_length=20)] = "200",
    a_day: Annotated[str, Query(max_length=20)] = "10",
) -> HTMLResponse:
    plans = plans_file.current()
    chosen = next((one for one in plans.models if one.id == model), plans.models[0])
    size = Load(
        _within(prompt, 300, MAX_REQUEST_TOKENS),
        _within(completion, 200, MAX_REQUEST_TOKENS),
        _within(a_day, 10, MAX_REQUESTS),
    )
    cost = charge_nanos(
        size.prompt_tokens, size.completion_tokens, chosen.prompt_price_nanos, chosen.completion_price_nanos
    )
    values = {
        "plans": rows(plans),
        "forecasts": forecasts(plans, chosen, size),
        "models": plans.models,
        "chosen": chosen,
        "size": size,
        "cost_nanos": cost,
        "one_price": _one_price(plans.models),
    }
    return render(request, "budget.html", values)


def _one_price(models: Sequence[Model]) -> int | None:
    """Return the price of every token, if there is only one."""
    prices = {price for model in models for price in (model.prompt_price_nanos, model.completion_price_nanos)}
    return prices.pop() if len(prices) == 1 else None


def _within(text: str, default: int, most: int) -> int:
    digits = text.replace(",", "").strip()
    return min(int(digits), most) if digits.isascii() and digits.isdigit() else default
