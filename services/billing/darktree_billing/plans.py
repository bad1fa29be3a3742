"""Plans, models and prices: read from one YAML file, checked whole, and never written down in code.

A mistake in the file is an error that names its place and what to do. `PlansFile` follows the file while
billing runs; a broken file changes nothing, so that a typo cannot stop customers who already work.
"""

import json
import logging
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from darktree_billing.schemas import (
    MAX_CONCURRENT_REQUESTS,
    MAX_REQUESTS_PER_MINUTE,
    BundleView,
    Catalog,
    ModelView,
    PlanView,
)
from darktree_billing.yaml_document import MAX_FILE_BYTES, parse_document
from darktree_kit.money import NANOS_PER_CENT, parse_dollars, price_per_thousand
from darktree_ledger.schemas import MAX_PRICE_NANOS, MAX_TOKENS

MAX_PLANS = 100
MAX_MODELS = 1_000

_log = logging.getLogger("darktree.billing.plans")


class PlansError(ValueError):
    """The plans file cannot be used; the message names the place and what to do."""


def tokens_bought(price_nanos: int, token_price_nanos: int) -> int | None:
    """Return how many whole tokens an amount buys; None when tokens are free, and so without end."""
    return price_nanos // token_price_nanos if token_price_nanos else None


def max_spend_per_day_nanos(cap_tokens: int, token_price_nanos: int) -> int:
    """Return what a day at the cap costs, when every token has this price."""
    return cap_tokens * token_price_nanos


def _dollars(text: Any) -> int:
    return parse_dollars(_quoted(text, "50"))


def _token_price(text: Any) -> int:
    return price_per_thousand(_quoted(text, "0.75"))


def _quoted(text: Any, example: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f'write dollars as text in quotes, such as "{example}": money is never a float')
    return text


Dollars = Annotated[int, BeforeValidator(_dollars)]
TokenPrice = Annotated[int, BeforeValidator(_token_price), Field(le=MAX_PRICE_NANOS)]
Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,62}[A-Za-z0-9])?$")]
DisplayName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Plan(_Part):
    """A bundle of credits and the daily cap that comes with it."""

    id: Id
    display_name: DisplayName
    price_nanos: Annotated[Dollars, Field(gt=0, multiple_of=NANOS_PER_CENT)] = Field(alias="price")
    default_cap_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)]
    # What each key may send, unless the customer has limits of their own; absent: any number.
    requests_per_minute: Annotated[int, Field(ge=1, le=MAX_REQUESTS_PER_MINUTE)] | None = None
    concurrent_requests: Annotated[int, Field(ge=1, le=MAX_CONCURRENT_REQUESTS)] | None = None
    # A price kept at Stripe, of exactly this plan's price; without it each Checkout Session is told the price.
    stripe_price_id: Annotated[str, Field(pattern=r"^price_[A-Za-z0-9_]{1,200}$")] | None = None


class DedicatedLane(_Part):
    """What a lane for one customer is made of: the parts of an InferenceLane's spec that do not depend on whose."""

    tokens_per_second: Annotated[int, Field(ge=1, le=1_000_000)]
    """What one replica serves while it is busy with many requests at once."""
    spec: dict[str, Any]

    @field_validator("spec")
    @classmethod
    def _is_a_spec(cls, spec: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(spec.get("model", {}), dict):
            raise ValueError("model: write a mapping, such as source: hf://...")
        if given := {"tier", "customerRef", "replicas"} & spec.keys():
            raise ValueError(f"{min(given)} follows from the request; remove it")
        try:
            json.dumps(spec)
        except TypeError as error:
            raise ValueError(f"write it as JSON could be: {error}") from error
        return spec


class Model(_Part):
    """A model that is sold, and its two prices in nano-dollars a token."""

    id: Id
    display_name: DisplayName
    prompt_price_nanos: TokenPrice = Field(alias="prompt_price_per_thousand")
    completion_price_nanos: TokenPrice = Field(alias="completion_price_per_thousand")
    default_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)]
    released: date
    dedicated_lane: DedicatedLane | None = None

    @property
    def dearest_price_nanos(self) -> int:
        return max(self.prompt_price_nanos, self.completion_price_nanos)


class Plans(_Part):
    """Everything the file says."""

    plans: Annotated[list[Plan], Field(min_length=1, max_length=MAX_PLANS)]
    models: Annotated[list[Model], Field(min_length=1, max_length=MAX_MODELS)]

    @model_validator(mode="after")
    def _ids_are_unique(self) -> Self:
        for name, parts in (("plans", self.plans), ("models", self.models)):
            seen: set[str] = set()
            for part in parts:
                if part.id in seen:
                    raise ValueError(f"{name}: two have the id {part.id!r}; give each its own")
                seen.add(part.id)
        return self

    def plan(self, plan_id: str) -> Plan | None:
        return next((plan for plan in self.plans if plan.id == plan_id), None)

    def dedicated_models(self) -> list[Model]:
        """Return the models of which a customer can have a lane alone."""
        return [model for model in self.models if model.dedicated_lane is not None]

    def catalog(self) -> Catalog:
        """Return plans and models as they go over the wire."""
        return Catalog(
            plans=[_plan_view(plan, self.models) for plan in self.plans],
            models=[_model_view(model) for model in self.models],
        )


def parse_plans(content: bytes, name: str = "the plans file") -> Plans:
    """Return the plans in a file's content. Raises PlansError naming the first mistakes."""
    try:
        return parse_document(content, Plans, name)
    except ValueError as error:
        raise PlansError(str(error)) from error


class PlansFile:
    """The plans of a file, re-read when it changes. `problem` says why its newest content is not in use."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises PlansError when it cannot be used: nothing is sold without prices."""
        self.path = path
        self.problem: str | None = None
        self._version = self._look()
        self._plans = self._read()

    def current(self) -> Plans:
        """Return the plans that are in use now."""
        version = self._look()
        if version != self._version:
            self._version = version
            self._reload()
        return self._plans

    def _reload(self) -> None:
        try:
            self._plans = self._read()
        except PlansError as error:
            self.problem = str(error)
            _log.error(
                "the plans file is broken: the last good one stays in use", extra={"problem": self.problem}
            )
        else:
            self.problem = None
            _log.info("the plans file was read again", extra={"path": str(self.path)})

    def _read(self) -> Plans:
        try:
            with self.path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise PlansError(f"{self.path}: {error.strerror}; set DARKTREE_BILLING_PLANS_FILE") from error
        return parse_plans(content, str(self.path))

    def _look(self) -> tuple[int, ...] | None:
        """Return what changes when the file does; None while it is not there."""
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return (stat.st_mtime_ns, stat.st_size, stat.st_ino)


def _plan_view(plan: Plan, models: list[Model]) -> PlanView:
    buys = [
        BundleView(
            model=model.id,
            tokens=tokens_bought(plan.price_nanos, model.dearest_price_nanos),
            max_spend_per_day_nanos=max_spend_per_day_nanos(
                plan.default_cap_tokens, model.dearest_price_nanos
            ),
        )
        for model in models
    ]
    return PlanView(
        id=plan.id,
        display_name=plan.display_name,
        price_nanos=plan.price_nanos,
        default_cap_tokens=plan.default_cap_tokens,
        requests_per_minute=plan.requests_per_minute,
        concurrent_requests=plan.concurrent_requests,
        buys=buys,
    )


def _model_view(model: Model) -> ModelView:
    return ModelView(
        id=model.id,
        display_name=model.display_name,
        prompt_price_nanos=model.prompt_price_nanos,
        completion_price_nanos=model.completion_price_nanos,
        default_completion_tokens=model.default_completion_tokens,
        created=int(datetime.combine(model.released, time(), UTC).timestamp()),
    )
