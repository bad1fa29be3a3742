"""What happens by itself when its time has come: sessions expire, delayed payments and refunds end, money
becomes available.
"""

from typing import Any

from darktree_stripe_simulator import refunds, sessions
from darktree_stripe_simulator.account import Account
from darktree_stripe_simulator.methods import NUMBERS


def run_due(account: Account) -> bool:
    """Do what is due, in the order of its instants. Returns whether there was anything."""
    instant = account.instant()
    ready = sorted(
        (item for item in account.due if item["at"] <= instant), key=lambda item: float(item["at"])
    )
    if not ready:
        return False
    account.due = [item for item in account.due if item["at"] > instant]
    account.request = {"id": None, "idempotency_key": None}
    for item in ready:
        _run(account, item)
    return True


def _run(account: Account, item: dict[str, Any]) -> None:
    about = account.objects[item["id"]]
    if item["action"] == "expire" and about["status"] == "open":
        sessions.expire(account, about)
    if item["action"] == "mature":
        account.change(about, status="available")
    if item["action"] == "settle" and about["status"] == "processing":
        charge = account.objects[about["latest_charge"]]
        sessions.settle(account, about, NUMBERS[account.private[charge["id"]]["number"]].failure)
    if item["action"] == "settle_refund" and about["status"] not in {"failed", "canceled", item["outcome"]}:
        refunds.settle(account, about, item["outcome"])
