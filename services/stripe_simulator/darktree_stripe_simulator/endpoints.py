"""The part of Stripe's API that is here: one line an endpoint, with what it takes and what it does."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from darktree_stripe_simulator import (
    balance,
    catalog,
    disputes,
    lists,
    parameters,
    payments,
    payouts,
    refunds,
    sessions,
)
from darktree_stripe_simulator.account import Account, Object
from darktree_stripe_simulator.errors import Refusal
from darktree_stripe_simulator.values import Page, Parameters


@dataclass(frozen=True)
class Call:
    """One request: the account, its parsed parameters, the ids in its path, and where it came in."""

    account: Account
    given: Any
    ids: tuple[str, ...]
    path: str
    base_url: str

    @property
    def id(self) -> str:
        return self.ids[0]


@dataclass(frozen=True)
class Endpoint:
    """`path` is as Stripe writes it: `/v1/charges/{id}`."""

    method: str
    path: str
    takes: type[Parameters]
    run: Callable[[Call], Object]

    def match(self, method: str, path: str) -> tuple[str, ...] | None:
        pattern = re.sub(r"\{\w+\}", "([^/]+)", self.path)
        found = re.fullmatch(pattern, path) if method == self.method else None
        return found.groups() if found else None


def find(method: str, path: str) -> tuple[Endpoint, tuple[str, ...]] | None:
    """Return the endpoint of a path, and the ids in it."""
    for endpoint in ENDPOINTS:
        ids = endpoint.match(method, path)
        if ids is not None:
            return endpoint, ids
    return None


def _list(kind: str) -> Callable[[Call], Object]:
    return lambda call: lists.listed(call.account, kind, call.given, call.path)


def _retrieve(kind: str, param: str = "id") -> Callable[[Call], Object]:
    return lambda call: call.account.find(kind, call.id, param)


def _update(kind: str) -> Callable[[Call], Object]:
    def update(call: Call) -> Object:
        about = call.account.find(kind, call.id)
        metadata = {**about["metadata"], **call.given.metadata}
        previous = call.account.change(
            about, metadata={name: value for name, value in metadata.items() if value != ""}
        )
        if previous and f"{kind}.updated" in _UPDATED:
            call.account.emit(f"{kind}.updated", about, previous)
        return about

    return update


_UPDATED = {"charge.updated", "customer.updated", "price.updated", "product.updated"}


def _session(call: Call) -> Object:
    return call.account.find("checkout.session", call.id, "session")


def _line_items(call: Call) -> Object:
    return lists.page(sessions.line_items(call.account, _session(call)), call.given, call.path)


def _cancel_intent(call: Call) -> Object:
    intent = call.account.find("payment_intent", call.id, "intent")
    if any(session["payment_intent"] == intent["id"] for session in call.account.all("checkout.session")):
        raise Refusal(
            "You cannot cancel PaymentIntents created by Checkout. Expire the Checkout Session instead.",
            code="payment_intent_unexpected_state",
        )
    return payments.cancel_intent(call.account, intent)


def _dispute(call: Call) -> Object:
    return call.account.find("dispute", call.id, "dispute")


ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/checkout/sessions",
        parameters.CreateSession,
        lambda call: sessions.create(call.account, call.given, call.base_url),
    ),
    Endpoint("GET", "/v1/checkout/sessions", parameters.ListSessions, _list("checkout.session")),
    Endpoint("GET", "/v1/checkout/sessions/{id}", Parameters, _session),
    Endpoint("POST", "/v1/checkout/sessions/{id}", parameters.UpdateMetadata, _update("checkout.session")),
    Endpoint(
        "POST",
        "/v1/checkout/sessions/{id}/expire",
        Parameters,
        lambda call: sessions.expire(call.account, _session(call)),
    ),
    Endpoint("GET", "/v1/checkout/sessions/{id}/line_items", Page, _line_items),
    Endpoint("GET", "/v1/payment_intents", parameters.ListPaymentIntents, _list("payment_intent")),
    Endpoint("GET", "/v1/payment_intents/{id}", Parameters, _retrieve("payment_intent", "intent")),
    Endpoint("POST", "/v1/payment_intents/{id}", parameters.UpdateMetadata, _update("payment_intent")),
    Endpoint("POST", "/v1/payment_intents/{id}/cancel", Parameters, _cancel_intent),
    Endpoint("GET", "/v1/charges", parameters.ListCharges, _list("charge")),
    Endpoint("GET", "/v1/charges/{id}", Parameters, _retrieve("charge")),
    Endpoint("POST", "/v1/charges/{id}", parameters.UpdateMetadata, _update("charge")),
    Endpoint(
        "POST", "/v1/refunds", parameters.CreateRefund, lambda call: refunds.create(call.account, call.given)
    ),
    Endpoint("GET", "/v1/refunds", parameters.ListRefunds, _list("refund")),
    Endpoint("GET", "/v1/refunds/{id}", Parameters, _retrieve("refund")),
    Endpoint("POST", "/v1/refunds/{id}", parameters.UpdateMetadata, _update("refund")),
    Endpoint("GET", "/v1/disputes", parameters.ListDisputes, _list("dispute")),
    Endpoint("GET", "/v1/disputes/{id}", Parameters, _dispute),
    Endpoint(
        "POST",
        "/v1/disputes/{id}",
        parameters.UpdateDispute,
        lambda call: disputes.update(call.account, _dispute(call), call.given),
    ),
    Endpoint(
        "POST",
        "/v1/disputes/{id}/close",
        Parameters,
        lambda call: disputes.accept(call.account, _dispute(call)),
    ),
    Endpoint("GET", "/v1/balance", Parameters, lambda call: balance.balance(call.account)),
    Endpoint(
        "GET", "/v1/balance_transactions", parameters.ListBalanceTransactions, _list("balance_transaction")
    ),
    Endpoint("GET", "/v1/balance_transactions/{id}", Parameters, _retrieve("balance_transaction")),
    Endpoint(
        "POST", "/v1/payouts", parameters.CreatePayout, lambda call: payouts.create(call.account, call.given)
    ),
    Endpoint("GET", "/v1/payouts", parameters.ListPayouts, _list("payout")),
    Endpoint("GET", "/v1/payouts/{id}", Parameters, _retrieve("payout", "payout")),
    Endpoint("GET", "/v1/events", parameters.ListEvents, _list("event")),
    Endpoint("GET", "/v1/events/{id}", Parameters, _retrieve("event")),
    Endpoint(
        "POST",
        "/v1/products",
        parameters.CreateProduct,
        lambda call: catalog.create_product(call.account, call.given),
    ),
    Endpoint("GET", "/v1/products", parameters.ListCreated, _list("product")),
    Endpoint("GET", "/v1/products/{id}", Parameters, _retrieve("product")),
    Endpoint(
        "POST",
        "/v1/prices",
        parameters.CreatePrice,
        lambda call: catalog.create_price(call.account, call.given),
    ),
    Endpoint("GET", "/v1/prices", parameters.ListCreated, _list("price")),
    Endpoint("GET", "/v1/prices/{id}", Parameters, _retrieve("price", "price")),
    Endpoint(
        "POST",
        "/v1/customers",
        parameters.CreateCustomer,
        lambda call: catalog.create_customer(call.account, call.given),
    ),
    Endpoint("GET", "/v1/customers", parameters.ListCustomers, _list("customer")),
    Endpoint("GET", "/v1/customers/{id}", Parameters, _retrieve("customer")),
    Endpoint("GET", "/v1/files", parameters.ListFiles, _list("file")),
    Endpoint("GET", "/v1/files/{id}", Parameters, _retrieve("file", "file")),
)
