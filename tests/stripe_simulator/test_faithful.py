"""The stand-in against the types of Stripe's own library: its parameters, its objects, its events."""

import builtins
import importlib
import io
import typing
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import stripe as library
from pydantic import BaseModel
from stripe import StripeClient, StripeObject

from darktree_stripe_simulator.client import StripeStandIn
from darktree_stripe_simulator.endpoints import ENDPOINTS, Endpoint
from darktree_stripe_simulator.errors import Refusal
from darktree_stripe_simulator.settings import VERSION
from darktree_stripe_simulator.values import Parameters, parse

# The library's parameters of each endpoint that takes any: what follows `stripe.params.`.
PARAMS = {
    "POST /v1/checkout/sessions": "checkout.SessionCreateParams",
    "GET /v1/checkout/sessions": "checkout.SessionListParams",
    "GET /v1/checkout/sessions/{id}": "checkout.SessionRetrieveParams",
    "POST /v1/checkout/sessions/{id}": "checkout.SessionUpdateParams",
    "POST /v1/checkout/sessions/{id}/expire": "checkout.SessionExpireParams",
    "GET /v1/checkout/sessions/{id}/line_items": "checkout.SessionLineItemListParams",
    "GET /v1/payment_intents": "PaymentIntentListParams",
    "GET /v1/payment_intents/{id}": "PaymentIntentRetrieveParams",
    "POST /v1/payment_intents/{id}": "PaymentIntentUpdateParams",
    "POST /v1/payment_intents/{id}/cancel": "PaymentIntentCancelParams",
    "GET /v1/charges": "ChargeListParams",
    "GET /v1/charges/{id}": "ChargeRetrieveParams",
    "POST /v1/charges/{id}": "ChargeUpdateParams",
    "POST /v1/refunds": "RefundCreateParams",
    "GET /v1/refunds": "RefundListParams",
    "GET /v1/refunds/{id}": "RefundRetrieveParams",
    "POST /v1/refunds/{id}": "RefundUpdateParams",
    "GET /v1/disputes": "DisputeListParams",
    "GET /v1/disputes/{id}": "DisputeRetrieveParams",
    "POST /v1/disputes/{id}": "DisputeUpdateParams",
    "POST /v1/disputes/{id}/close": "DisputeCloseParams",
    "GET /v1/balance": "BalanceRetrieveParams",
    "GET /v1/balance_transactions": "BalanceTransactionListParams",
    "GET /v1/balance_transactions/{id}": "BalanceTransactionRetrieveParams",
    "POST /v1/payouts": "PayoutCreateParams",
    "GET /v1/payouts": "PayoutListParams",
    "GET /v1/payouts/{id}": "PayoutRetrieveParams",
    "GET /v1/events": "EventListParams",
    "GET /v1/events/{id}": "EventRetrieveParams",
    "POST /v1/products": "ProductCreateParams",
    "GET /v1/products": "ProductListParams",
    "GET /v1/products/{id}": "ProductRetrieveParams",
    "POST /v1/prices": "PriceCreateParams",
    "GET /v1/prices": "PriceListParams",
    "GET /v1/prices/{id}": "PriceRetrieveParams",
    "POST /v1/customers": "CustomerCreateParams",
    "GET /v1/customers": "CustomerListParams",
    "GET /v1/customers/{id}": "CustomerRetrieveParams",
    "GET /v1/files": "FileListParams",
    "GET /v1/files/{id}": "FileRetrieveParams",
}
CLASSES: dict[str, type[StripeObject]] = {
    "checkout.session": library.checkout.Session,
    "payment_intent": library.PaymentIntent,
    "charge": library.Charge,
    "refund": library.Refund,
    "dispute": library.Dispute,
    "balance_transaction": library.BalanceTransaction,
    "payout": library.Payout,
    "event": library.Event,
    "balance": library.Balance,
    "product": library.Product,
    "price": library.Price,
    "customer": library.Customer,
    "file": library.File,
    "item": library.LineItem,
}
ONLY_WHEN_DELETED = {"deleted"}


class Names(Mapping[str, Any]):
    """What the library's annotations name; what only a type checker imports there is found in `stripe` itself."""

    def __init__(self, module: str) -> None:
        self._own = vars(importlib.import_module(module))

    def __getitem__(self, name: str) -> Any:
        for names in (self._own, vars(typing), vars(builtins)):
            if name in names:
                return names[name]
        return getattr(library, name, Any)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, localns=Names(kind.__module__), include_extras=True)


def plain(annotation: Any) -> Any:
    """Return an annotation without what only says that it may be left out, or how it is checked."""
    while get_origin(annotation) in {typing.NotRequired, typing.Required, Annotated}:
        annotation = get_args(annotation)[0]
    if isinstance(annotation, str):  # `"Literal['']|Dict[str, str]"` inside a NotRequired
        annotation = eval(annotation, {}, Names("typing"))
    return annotation


def options(annotation: Any) -> list[Any]:
    """Return the branches of a union, those of its branches too."""
    annotation = plain(annotation)
    if get_origin(annotation) is Union or str(type(annotation)) == "<class 'types.UnionType'>":
        return [option for branch in get_args(annotation) for option in options(branch)]
    return [annotation]


def literals(annotation: Any) -> set[Any]:
    return {
        value for option in options(annotation) if get_origin(option) is Literal for value in get_args(option)
    }


def groups(annotation: Any) -> list[type[BaseModel]]:
    """Return the hashes of parameters in an annotation of ours, those in lists too."""
    found = []
    for option in options(annotation):
        inner = plain(get_args(option)[0]) if get_origin(option) is list else option
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found.append(inner)
    return found


def typed_dicts(annotation: Any) -> list[Any]:
    found = []
    for option in options(annotation):
        inner = plain(get_args(option)[0]) if get_origin(option) is list else option
        if hasattr(inner, "__required_keys__"):  # a TypedDict, of typing or typing_extensions
            found.append(inner)
    return found


def problems_of(ours: type[BaseModel], theirs: Any, path: str) -> list[str]:
    """Return what our parameters have that the library's do not."""
    known = hints(theirs)
    found = []
    for name, field in ours.model_fields.items():
        here = f"{path}[{name}]" if path else name
        if name not in known:
            found.append(f"{here} is no parameter")
            continue
        our_values = literals(field.annotation)
        their_values = literals(known[name])
        if our_values and their_values and not our_values <= their_values:
            found.append(f"{here} takes {our_values - their_values}")
        for group, typed in zip(groups(field.annotation), typed_dicts(known[name]), strict=False):
            found += problems_of(group, typed, here)
        if groups(field.annotation) and not typed_dicts(known[name]):
            found.append(f"{here} is no hash")
    return found


def params_class(name: str) -> Any:
    module, _, class_name = name.rpartition(".")
    return getattr(importlib.import_module(f"stripe.params.{module}".rstrip(".")), class_name)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: f"{endpoint.method} {endpoint.path}")
def test_every_parameter_and_every_value_of_a_choice_is_one_of_the_librarys(endpoint: Endpoint) -> None:
    theirs = params_class(PARAMS[f"{endpoint.method} {endpoint.path}"])
    assert problems_of(endpoint.takes, theirs, "") == []


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: f"{endpoint.method} {endpoint.path}")
def test_a_parameter_that_is_required_is_required_here_and_no_other(endpoint: Endpoint) -> None:
    theirs = params_class(PARAMS[f"{endpoint.method} {endpoint.path}"])
    required = {name for name, field in endpoint.takes.model_fields.items() if field.is_required()}
    # The library leaves to Stripe what depends on other parameters.
    stricter = {"/v1/checkout/sessions": {"mode"}, "/v1/prices": {"unit_amount"}}
    assert required - stricter.get(endpoint.path, set()) == set(theirs.__required_keys__)


def test_the_version_is_the_one_that_the_library_is_made_for() -> None:
    assert library.api_version == VERSION


def conforms(value: Any, annotation: Any, path: str) -> list[str]:
    """Return where a value is not what the library's type says."""
    branches = options(annotation)
    if Any in branches:
        return []
    attempts = [_conforms(value, branch, path) for branch in branches]
    return min(attempts, key=len) if all(attempts) else []


def _conforms(value: Any, branch: Any, path: str) -> list[str]:
    origin = get_origin(branch)
    wrong = [f"{path} is {value!r}, not {branch}"]
    if origin is Literal:
        return [] if value in get_args(branch) else wrong
    if origin in {list, dict}:
        if not isinstance(value, origin):
            return wrong
        items = enumerate(value) if origin is list else value.items()
        return [
            problem
            for key, item in items
            for problem in conforms(item, get_args(branch)[-1], f"{path}[{key}]")
        ]
    kind = origin or branch
    if isinstance(kind, type) and issubclass(kind, StripeObject):
        if not isinstance(value, dict):
            return wrong
        if kind.__name__ == "UntypedStripeObject":
            return []
        if kind is library.ListObject:
            items = value["data"]
            return [
                problem
                for place, item in enumerate(items)
                for problem in conforms(item, get_args(branch)[0], f"{path}[{place}]")
            ]
        return object_problems(value, kind, path)
    if kind is type(None):
        return [] if value is None else wrong
    if kind.__name__ == "Decimal":
        return [] if isinstance(value, str | Decimal) else wrong
    return [] if type(value) is kind else wrong


def object_problems(about: Mapping[str, Any], kind: type, path: str) -> list[str]:
    known = {name: hint for name, hint in hints(kind).items() if not name.startswith("_") and name.islower()}
    absent = [
        f"{path}.{name} is missing"
        for name, hint in known.items()
        if name not in about and type(None) not in options(hint) and name not in ONLY_WHEN_DELETED
    ]
    unknown = [f"{path}.{name} is no field" for name in about if name not in known]
    wrong = [
        problem
        for name, value in about.items()
        if name in known
        for problem in conforms(value, known[name], f"{path}.{name}")
    ]
    return absent + unknown + wrong


def everything(stripe: StripeStandIn, api: StripeClient, make_session: Callable[..., str]) -> list[Any]:
    """Do everything that can happen, and return every object in every state, as the events told it."""
    stripe.pay(make_session())
    charge, *_ = api.v1.charges.list().data
    api.v1.refunds.create({"charge": charge.id, "amount": 1000})
    disputed = stripe.dispute(charge.id)
    api.v1.disputes.update(disputed["id"], {"evidence": {"uncategorized_text": "winning_evidence"}})
    stripe.pay(
        make_session(automatic_tax={"enabled": True}, customer_creation="always"), number="4000000000001976"
    )
    (inquiry,) = (found for found in api.v1.disputes.list().data if found.status == "warning_needs_response")
    stripe.escalate(inquiry.id)
    stripe.close_dispute(inquiry.id, "lost")
    open_one = make_session()
    stripe.pay(open_one, number="4000000000000002")
    api.v1.checkout.sessions.expire(open_one)
    for outcome in ("succeeded", "failed"):
        delayed = stripe.pay(make_session(), method="us_bank_account")
        stripe.settle(delayed["payment_intent"], outcome)
        if outcome == "succeeded":
            refund = api.v1.refunds.create({"payment_intent": delayed["payment_intent"]})
            stripe.settle_refund(refund.id, "failed")
    stripe.payout()
    stripe.pay(make_session())
    stripe.fail_payout(stripe.payout(arrive=False)["id"])
    product = api.v1.products.create({"name": "Solo"})
    api.v1.prices.create({"currency": "usd", "unit_amount": 5000, "product": product.id})
    uploaded: Any = {"file": io.BytesIO(b"evidence"), "purpose": "dispute_evidence"}
    file = api.v1.files.create(uploaded)
    found: list[Any] = [event.to_dict() for event in api.v1.events.list({"limit": 100}).data]
    found += [event["data"]["object"] for event in list(found)]
    found += [item.to_dict() for item in api.v1.balance_transactions.list({"limit": 100}).data]
    found += [item.to_dict() for item in api.v1.checkout.sessions.line_items.list(open_one).data]
    return [*found, api.v1.balance.retrieve().to_dict(), file.to_dict()]


def test_every_object_in_every_state_is_what_the_librarys_types_say(
    stripe: StripeStandIn, api: StripeClient, make_session: Callable[..., str]
) -> None:
    found = everything(stripe, api, make_session)
    assert {about["object"] for about in found} == set(CLASSES)
    problems = {
        problem
        for about in found
        for problem in object_problems(about, CLASSES[about["object"]], about["object"])
    }
    assert not problems, "\n".join(sorted(problems))


def test_every_event_is_of_a_type_that_the_library_knows(
    stripe: StripeStandIn, api: StripeClient, make_session: Callable[..., str]
) -> None:
    everything(stripe, api, make_session)
    assert {event.type for event in stripe.events()} <= literals(hints(library.Event)["type"])


def test_what_the_library_does_not_know_is_refused() -> None:
    with pytest.raises(Refusal) as refused:
        parse(Parameters, {"colour": "red"})
    assert refused.value.error["code"] == "parameter_unknown"
