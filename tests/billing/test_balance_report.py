"""Stripe's files of balance transactions: three shapes, one meaning, and a mistake told with its row."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from darktree_billing.balance_report import MAX_TRANSACTIONS, BalanceTransaction, ReportError, parse_report

DASHBOARD = """id,Type,Source,Amount,Fee,Destination Platform Fee,Destination Platform Fee Currency,Net,Currency,\
Created (UTC),Available On (UTC),Description,Customer Facing Amount,Customer Facing Currency,Transfer,\
Transfer Date (UTC),Transfer Group,payment_intent (metadata)
txn_1,charge,ch_1,50.00,1.75,,,48.25,usd,2026-11-03 10:02,2026-11-05 00:00,"Solo, 66,666 tokens",50.00,usd,po_1,\
2026-11-06 00:00,,pi_1
txn_2,payout,po_1,-48.25,0.00,,,-48.25,usd,2026-11-06 00:00,2026-11-06 00:00,STRIPE PAYOUT,,,,,,
"""
ITEMIZED = """balance_transaction_id,created_utc,available_on_utc,currency,gross,fee,net,reporting_category,source_id,\
description,automatic_payout_id,automatic_payout_effective_at_utc,charge_id,payment_intent_id
txn_1,2026-11-03 10:02:00,2026-11-05 00:00:00,usd,50.00,1.75,48.25,charge,ch_1,"Solo, 66,666 tokens",po_1,\
2026-11-06 00:00:00,ch_1,pi_1
"""
PAYOUTS = """payout_id,effective_at_utc,balance_transaction_id,currency,gross,fee,net,reporting_category,description
po_1,2026-11-06 00:00:00,txn_2,usd,-48.25,0.00,-48.25,payout,STRIPE PAYOUT
"""
API: dict[str, Any] = {
    "object": "list",
    "data": [
        {
            "id": "txn_1",
            "object": "balance_transaction",
            "amount": 5000,
            "available_on": 1793836800,
            "created": 1793700120,
            "currency": "usd",
            "description": "Solo, 66,666 tokens",
            "fee": 175,
            "fee_details": [{"amount": 175, "currency": "usd", "type": "stripe_fee"}],
            "net": 4825,
            "payout": "po_1",
            "reporting_category": "charge",
            "source": {
                "id": "ch_1",
                "payment_intent": "pi_1",
                "metadata": {"session": "cs_1", "plan": "solo"},
            },
            "status": "available",
            "type": "charge",
        },
        {
            "id": "txn_9",
            "amount": -5000,
            "available_on": 1793836800,
            "created": 1793700120,
            "currency": "usd",
            "description": None,
            "fee": 1500,
            "net": -6500,
            "reporting_category": "dispute",
            "source": "du_1",
            "type": "adjustment",
        },
    ],
}
CHARGE = {
    "id": "txn_1",
    "type": "charge",
    "amount_cents": 5000,
    "fee_cents": 175,
    "net_cents": 4825,
    "currency": "usd",
    "created": datetime(2026, 11, 3, 10, 2, tzinfo=UTC),
    "available_on": datetime(2026, 11, 5, tzinfo=UTC),
    "payout": "po_1",
    "source": "ch_1",
    "description": "Solo, 66,666 tokens",
}


def fields(transaction: BalanceTransaction) -> dict[str, object]:
    return transaction.model_dump(exclude={"known_as"})


@pytest.mark.parametrize(
    "content", [DASHBOARD, "\ufeff" + DASHBOARD.replace("\n", "\r\n"), ITEMIZED, json.dumps(API)]
)
def test_the_dashboards_the_reports_and_the_apis_files_say_the_same(content: str) -> None:
    charge = parse_report(content)[0]
    assert fields(charge) == CHARGE
    assert {"ch_1", "pi_1"} <= set(charge.known_as)


def test_a_payout_is_read_from_both_kinds_of_file() -> None:
    dashboard, report = parse_report(DASHBOARD)[1], parse_report(PAYOUTS)[0]
    assert fields(report) | {"available_on": None} == fields(dashboard) | {"available_on": None}
    assert (report.category, report.source, report.payout, report.known_as) == (
        "payout", "po_1", None, ["po_1", "txn_2"],
    )  # fmt: skip


def test_an_adjustment_for_a_dispute_is_a_dispute_in_every_file() -> None:
    assert parse_report(json.dumps(API))[1].category == "dispute"
    row = (
        "txn_9,adjustment,du_1,-50.00,15.00,,,-65.00,usd,2026-11-03 10:02,2026-11-05 00:00,Chargeback,,,,,,\n"
    )
    assert parse_report(DASHBOARD.splitlines()[0] + "\n" + row)[0].category == "dispute"


def test_what_the_api_tells_in_an_expanded_source_is_known_too() -> None:
    assert parse_report(json.dumps(API["data"]))[0].known_as == ["ch_1", "cs_1", "pi_1", "txn_1"]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "no column `id`"),
        ("date,amount\n1,2\n", "no column `id`"),
        ("{", "not JSON"),
        ("{}", "no `data`"),
        ("[1]", "row 1: this is no balance transaction"),
        (
            DASHBOARD.replace("48.25,usd,2026-11-03", "48.26,usd,2026-11-03"),
            "row 1: net: txn_1 is not its amount less",
        ),
        (
            DASHBOARD.replace("50.00,1.75", "50.001,1.75"),
            "row 1: amount: '50.001' is not a whole number of cents",
        ),
        (DASHBOARD.replace("50.00,1.75", "much,1.75"), "row 1: amount: 'much' is not an amount"),
        (DASHBOARD.replace("2026-11-03 10:02", "yesterday"), "row 1: created_utc: "),
        (DASHBOARD.replace("txn_1", ""), "row 1: id"),
        (DASHBOARD.replace(",usd,2026-11-03", ",dollars,2026-11-03"), "row 1: currency"),
        (DASHBOARD.replace('"Solo', '"Solo" x'), "not CSV"),
        (json.dumps([API["data"][0] | {"created": "x"}]), "row 1: created"),
        (json.dumps([API["data"][0] | {"amount": 50.5}]), "row 1: amount_cents"),
        (json.dumps([API["data"][0] | {"amount": 10**30}]), "row 1: amount_cents"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_row_and_field(content: str, what: str) -> None:
    with pytest.raises(ReportError, match=what):
        parse_report(content)


def test_a_file_has_a_largest_number_of_rows() -> None:
    row = "\n" + PAYOUTS.splitlines()[1]
    with pytest.raises(ReportError, match=f"more than {MAX_TRANSACTIONS}"):
        parse_report(PAYOUTS.splitlines()[0] + row * (MAX_TRANSACTIONS + 1))
