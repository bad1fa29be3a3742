"""`expand[]`: an id in an answer becomes the object that it names (docs.stripe.com/api/expanding_objects)."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from darktree_stripe_simulator.account import Account, Object
from darktree_stripe_simulator.errors import Refusal

MAX_DEPTH = 4
# Which fields of an object can be expanded. Those of `LISTS` are lists that an answer has only on request.
EXPANDABLE = {
    "checkout.session": {"customer", "payment_intent", "line_items"},
    "payment_intent": {"customer", "latest_charge"},
    "charge": {"balance_transaction", "customer", "failure_balance_transaction", "payment_intent", "refunds"},
    "refund": {"balance_transaction", "charge", "failure_balance_transaction", "payment_intent"},
    "dispute": {"charge", "payment_intent"},
    "balance_transaction": {"source"},
    "payout": {"balance_transaction", "failure_balance_transaction"},
    "price": {"product"},
    "item": set[str](),
}
NESTED = {"item": {"price"}}  # objects that are whole already, and can have something expanded
LISTS: dict[tuple[str, str], Callable[[Account, Object], Sequence[Object]]] = {
    ("checkout.session", "line_items"): lambda account, about: account.private[about["id"]]["line_items"],
    ("charge", "refunds"): lambda account, about: [
        refund for refund in account.all("refund") if refund["charge"] == about["id"]
    ],
}


def shown(account: Account, answer: Object, paths: Sequence[str]) -> Object:
    """Return a copy of an answer with what was asked for expanded. Raises Refusal for what cannot be."""
    copied = copy.deepcopy(answer)
    for path in paths:
        parts = path.split(".")
        if len(parts) > MAX_DEPTH:
            raise Refusal(
                f"You cannot expand more than {MAX_DEPTH} levels of a property. Property: {path}",
                param="expand",
                executed=False,
            )
        _expand(account, copied, parts, path)
    return copied


def _expand(account: Account, about: Any, parts: Sequence[str], path: str) -> None:
    if not parts or about is None:
        return
    name, rest = parts[0], parts[1:]
    if isinstance(about, list):
        for item in about:
            _expand(account, item, parts, path)
        return
    kind = about.get("object") if isinstance(about, dict) else None
    if kind == "list" and name == "data":
        _expand(account, about["data"], rest, path)
        return
    if kind is None or name not in EXPANDABLE.get(kind, set()) | NESTED.get(kind, set()):
        raise Refusal(f"This property cannot be expanded ({path}).", param="expand", executed=False)
    if (kind, name) in LISTS and name not in about:
        items = LISTS[kind, name](account, about)
        about[name] = {
            "object": "list",
            "data": copy.deepcopy(list(items)),
            "has_more": False,
            "url": _url_of_list(kind, about["id"], name),
        }
    elif isinstance(about.get(name), str):
        about[name] = copy.deepcopy(account.objects[about[name]])
    _expand(account, about.get(name), rest, path)


def _url_of_list(kind: str, id: str, name: str) -> str:
    return f"/v1/{'checkout/sessions' if kind == 'checkout.session' else kind + 's'}/{id}/{name}"
