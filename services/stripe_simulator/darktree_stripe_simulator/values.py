"""What a parameter's value can be, and Stripe's words for one that it cannot be."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from darktree_stripe_simulator.errors import (
    Refusal,
    empty_parameter,
    invalid_parameter,
    missing_parameter,
    unknown_parameters,
)

MAX_METADATA_KEYS = 50
MAX_METADATA_KEY_CHARACTERS = 40
MAX_METADATA_VALUE_CHARACTERS = 500
MAX_PAGE = 100
_INTEGER = re.compile(r"-?[0-9]{1,15}")


def _integer(value: Any) -> Any:
    if isinstance(value, str) and not _INTEGER.fullmatch(value):
        raise ValueError(f"Invalid integer: {value}")
    return value


def _boolean(value: Any) -> Any:
    if isinstance(value, str) and value not in {"true", "false"}:
        raise ValueError(f"Invalid boolean: {value}")
    return value


def _url(value: Any) -> Any:
    if isinstance(value, str) and not re.match(r"https?://[^/\s]+", value):
        raise ValueError("Not a valid URL")
    return value


def _hash(value: Any) -> Any:
    """A hash whose keys are numbers looks like an array in a form."""
    if isinstance(value, list):
        return {str(place): item for place, item in enumerate(value)}
    return {} if value == "" else value


Integer = Annotated[int, BeforeValidator(_integer)]
Boolean = Annotated[bool, BeforeValidator(_boolean)]
Url = Annotated[str, Field(max_length=5_000), BeforeValidator(_url)]
Text = Annotated[str, Field(max_length=5_000)]
LongText = Annotated[str, Field(max_length=20_000)]
Currency = Annotated[str, Field(pattern="^[A-Za-z]{3}$")]
# An empty value unsets a key.
Metadata = Annotated[
    dict[
        Annotated[str, Field(max_length=MAX_METADATA_KEY_CHARACTERS)],
        Annotated[str, Field(max_length=MAX_METADATA_VALUE_CHARACTERS)],
    ],
    Field(max_length=MAX_METADATA_KEYS),
    BeforeValidator(_hash),
]


class Group(BaseModel):
    """A hash of parameters; one that it does not know is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Parameters(Group):
    """What one endpoint takes."""

    expand: list[str] = Field(default=[], max_length=20)


class Range(Group):
    gt: Integer | None = None
    gte: Integer | None = None
    lt: Integer | None = None
    lte: Integer | None = None

    def has(self, instant: int) -> bool:
        return (
            (self.gt is None or instant > self.gt)
            and (self.gte is None or instant >= self.gte)
            and (self.lt is None or instant < self.lt)
            and (self.lte is None or instant <= self.lte)
        )


class Page(Parameters):
    """What every list takes. `created` is one instant, or bounds."""

    limit: Annotated[Integer, Field(ge=1, le=MAX_PAGE)] = 10
    starting_after: str | None = None
    ending_before: str | None = None


P = TypeVar("P", bound=Parameters)


def parse(model: type[P], given: dict[str, Any]) -> P:
    """Return an endpoint's parameters. Raises Refusal as Stripe does, the unknown ones first."""
    try:
        parsed = model.model_validate(given)
    except ValidationError as error:
        raise _refusal(error.errors()) from error
    _refuse_empty(given, "")
    return parsed


def _refusal(errors: Sequence[ErrorDetails]) -> Refusal:
    unknown = [_name(error["loc"]) for error in errors if error["type"] == "extra_forbidden"]
    if unknown:
        return unknown_parameters(unknown)
    absent = [_name(error["loc"]) for error in errors if error["type"] == "missing"]
    if absent:
        return missing_parameter(absent[0])
    first = errors[0]
    name, kind, context = _name(first["loc"]), first["type"], first.get("ctx", {})
    value = first["input"]
    if value == "":
        return empty_parameter(name)
    if kind == "literal_error":
        allowed = str(context["expected"]).replace("'", "")
        return invalid_parameter(f"Invalid {name}: must be one of {allowed}", name)
    if kind == "value_error":
        message = str(context["error"])
        code = "parameter_invalid_integer" if message.startswith("Invalid integer") else None
        return invalid_parameter(message, name, "url_invalid" if message == "Not a valid URL" else code)
    if kind in {"model_type", "model_attributes_type", "dict_type"}:
        return invalid_parameter("Invalid object", name)
    if kind == "list_type":
        return invalid_parameter("Invalid array", name)
    return invalid_parameter(f"Invalid {name}: {first['msg']}", name)


def _refuse_empty(value: Any, name: str) -> None:
    """An empty string unsets a value, which only metadata and evidence can be."""
    if value == "" and not re.search(r"(^|\[)(metadata|evidence)(\]|$|\[)", name):
        raise empty_parameter(name)
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        _refuse_empty(item, f"{name}[{key}]" if name else str(key))


def _name(location: Sequence[int | str]) -> str:
    # The branches of a union are pydantic's, not the caller's.
    parts = [str(part) for part in location if not re.search(r"[(){}<>-]|^(int|Range)$", str(part))]
    return parts[0] + "".join(f"[{part}]" for part in parts[1:]) if parts else ""


SessionStatus = Literal["open", "complete", "expired"]
