"""Lists: the newest first, a page at a time, filtered as each endpoint can."""

from collections.abc import Callable, Iterable
from typing import Any

from darktree_stripe_simulator.account import Account, Object
from darktree_stripe_simulator.errors import invalid_parameter, not_found
from darktree_stripe_simulator.parameters import (
    ListBalanceTransactions,
    ListCharges,
    ListCustomers,
    ListDisputes,
    ListEvents,
    ListFiles,
    ListPaymentIntents,
    ListPayouts,
    ListRefunds,
    ListSessions,
)
from darktree_stripe_simulator.values import Page, Range

EVENT_SECONDS = 30 * 86_400  # Stripe lists events no longer
# Filters that compare a field with the parameter of the same name.
_SAME = {
    ListSessions: ("payment_intent", "customer", "status"),
    ListPaymentIntents: ("customer",),
    ListCharges: ("customer", "payment_intent"),
    ListRefunds: ("charge", "payment_intent"),
    ListDisputes: ("charge", "payment_intent"),
    ListBalanceTransactions: ("currency", "source", "type"),
    ListPayouts: ("status",),
    ListEvents: ("type",),
    ListCustomers: ("email",),
    ListFiles: ("purpose",),
}


def listed(account: Account, kind: str, given: Page, path: str) -> Object:
    """Return one page of the objects of a kind. Raises Refusal."""
    tests = _tests(account, given)
    return page([found for found in account.all(kind) if all(test(found) for test in tests)], given, path)


def page(found: Iterable[Object], given: Page, path: str) -> Object:
    """Return a page of what was found, the newest first. Raises Refusal."""
    items = list(found)
    if given.starting_after is not None and given.ending_before is not None:
        raise invalid_parameter(
            "Received both starting_after and ending_before parameters. Please pass in only one.",
            "starting_after",
        )
    if given.ending_before is not None:
        end = _place(items, given.ending_before, "ending_before")
        start = max(end - given.limit, 0)
        return _list(items[start:end], start > 0, path)
    start = 0 if given.starting_after is None else _place(items, given.starting_after, "starting_after") + 1
    return _list(items[start : start + given.limit], start + given.limit < len(items), path)


def _list(data: list[Object], has_more: bool, path: str) -> Object:
    return {"object": "list", "data": data, "has_more": has_more, "url": path}


def _place(items: list[Object], id: str, param: str) -> int:
    place = next((place for place, item in enumerate(items) if item["id"] == id), None)
    if place is None:
        raise not_found("object", id, param)
    return place


def _tests(account: Account, given: Page) -> list[Callable[[Object], bool]]:
    tests = [
        _equals(name, getattr(given, name))
        for model, names in _SAME.items()
        if isinstance(given, model)
        for name in names
        if getattr(given, name) is not None
    ]
    for name in ("created", "arrival_date"):
        wanted = getattr(given, name, None)
        if wanted is not None:
            tests.append(_within(name, wanted))
    if isinstance(given, ListSessions) and given.customer_details is not None:
        email = given.customer_details.email
        tests.append(lambda found: (found["customer_details"] or {}).get("email") == email)
    if isinstance(given, ListBalanceTransactions) and given.payout is not None:
        payout = account.find("payout", given.payout, "payout")
        if not payout["automatic"]:
            raise invalid_parameter(
                "Balance transaction history can only be filtered on automatic transfers, not manual.",
                "payout",
            )
        tests.append(lambda found: bool(account.private[found["id"]]["payout"] == given.payout))
    if isinstance(given, ListEvents):
        tests += _event_tests(account, given)
    return tests


def _event_tests(account: Account, given: ListEvents) -> list[Callable[[Object], bool]]:
    if given.type is not None and given.types:
        raise invalid_parameter("You may pass either `type` or `types`, but not both.", "types")
    oldest = account.now() - EVENT_SECONDS
    tests: list[Callable[[Object], bool]] = [lambda found: bool(found["created"] >= oldest)]
    if given.types:
        tests.append(lambda found: found["type"] in given.types)
    if given.delivery_success is not None:
        tests.append(lambda found: bool(found["pending_webhooks"] == 0) == given.delivery_success)
    return tests


def _equals(name: str, wanted: Any) -> Callable[[Object], bool]:
    return lambda found: bool(found[name] == wanted)


def _within(name: str, wanted: int | Range) -> Callable[[Object], bool]:
    if isinstance(wanted, Range):
        return lambda found: wanted.has(found[name])
    return lambda found: bool(found[name] == wanted)
