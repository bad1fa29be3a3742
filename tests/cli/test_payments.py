"""Payments through the command line, on a running platform that sells through the stand-in."""

import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from darktree_stripe_simulator.client import StripeStandIn

Running = Any  # tests/cli/conftest.py, which cannot be imported
REASON = ("--reason", "asked for it")


def test_a_bundle_is_ordered_paid_refunded_disputed_and_defended(platform: Running, tmp_path: Path) -> None:
    platform.json("customers", "create", "Buyer", "--id", "buyer", "--plan", "solo")
    begun = platform.json("payments", "begin", "buyer", "solo")
    page = urlsplit(begun["url"])
    order = begun["order_id"]
    session = platform.json("payments", "show", order)["session_id"]
    stripe = StripeStandIn(f"{page.scheme}://{page.netloc}", "unused", "unused")
    stripe.pay(session)
    paid = platform.json("payments", "check", order)
    assert (paid["state"], paid["price_cents"]) == ("paid", 5_000)
    assert platform.json("ledger", "balance", "buyer")["balance_nanos"] == 50_000_000_000

    refunded = platform.json("payments", "refund", order, "--dollars", "20", *REASON)
    assert refunded["refunded_cents"] == 2_000
    refunds = platform.json("payments", "disputes", "--refunds", "--customer", "buyer")["data"]
    assert [row["amount_cents"] for row in refunds] == [2_000]

    dispute = stripe.dispute(paid["charge_id"])["id"]
    disputed = platform.json("payments", "check", order)
    assert disputed["disputed_cents"] == 3_000
    made = platform.json("payments", "evidence", dispute, "--to", str(tmp_path))
    assert "fields.json" in zipfile.ZipFile(made["file"]).namelist()
    assert platform.json("payments", "unfreeze", "buyer", *REASON)["frozen"] is False
    assert platform.json("payments", "freeze", "buyer", *REASON)["frozen"] is True

    assert platform.json("payments", "sweep")["problems"] == []
    told = platform.json("payments", "status")
    assert (told["buying"], told["events_dead"]) == (True, 0)
    listed = platform.json("payments", "list", "--customer", "buyer", "--limit", "1")["data"]
    assert [row["id"] for row in listed] == [order]
    events = platform.json("payments", "events")["data"]
    known = next(event for event in events if event["order_id"] == order)
    assert platform.json("payments", "retry", known["id"])["state"] == "waiting"
