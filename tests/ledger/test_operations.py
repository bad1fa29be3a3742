"""What each operation does to a balance, a cap and the entries."""

from typing import Any
from uuid import UUID

import psycopg
import pytest

from darktree_kit.ids import uuid7
from darktree_ledger.schemas import OpenAccount, Renew, Show, Void


def test_a_settlement_charges_exactly_what_was_used_and_releases_the_rest(ledger: Any, build: Any) -> None:
    ledger.customer("acme", cap_tokens=1_000, dollars=50)
    placed = build.hold("acme", 100, 200)
    granted = ledger.one(placed)
    assert (granted.outcome, granted.completion_tokens) == ("done", 200)
    assert (granted.day_held_tokens, granted.held_nanos) == (300, 300 * build.price_nanos)
    settled = ledger.one(build.settle(placed, 90, 10))
    assert (settled.charged_tokens, settled.absorbed_tokens) == (100, 0)
    assert settled.amount_nanos == 100 * build.price_nanos
    assert settled.balance_nanos == 50 * build.dollar - 100 * build.price_nanos
    assert (settled.day_tokens, settled.day_held_tokens, settled.held_nanos) == (100, 0, 0)


def test_prompt_and_completion_tokens_have_their_own_prices(ledger: Any, build: Any) -> None:
    ledger.customer("acme")
    placed = build.hold("acme", 10, 20, prompt_price_nanos=3, completion_price_nanos=7)
    ledger.one(placed)
    assert ledger.one(build.settle(placed, 10, 20)).amount_nanos == 10 * 3 + 20 * 7


def test_the_last_hold_of_the_day_is_clamped_to_the_cap(ledger: Any, build: Any) -> None:
    ledger.customer("acme", cap_tokens=100)
    assert ledger.one(build.hold("acme", 30, 500)).completion_tokens == 70


def test_answers_that_share_a_request_are_clamped_to_equal_shares(ledger: Any, build: Any) -> None:
    ledger.customer("acme", cap_tokens=100)
    assert ledger.one(build.hold("acme", 30, 400, step_tokens=4)).completion_tokens == 68


def test_a_hold_is_clamped_to_the_balance(ledger: Any, build: Any) -> None:
    ledger.customer("acme", cap_tokens=1_000_000, dollars=0)
    ledger.one(build.grant("acme", 50 * build.price_nanos + 1))
    assert ledger.one(build.hold("acme", 20, 500)).completion_tokens == 30


def test_when_not_even_the_prompt_fits_the_cap_refuses(ledger: Any, build: Any) -> None:
    ledger.customer("acme", cap_tokens=100)
    refused = ledger.one(build.hold("acme", 100, 1))
    assert (refused.outcome, refused.reason, refused.day_held_tokens) == ("refused", "cap", 0)
    assert refused.reset_seconds is not None
    assert 0 < refused.reset_seconds <= 86_400


def test_when_not_even_the_prompt_can_be_paid_the_balance_refuses(ledger: Any, build: Any) -> None:
    ledger.customer("acme", dollars=0)
    refused = ledger.one(build.hold("acme", 1, 1))
    assert (refused.outcome, refused.reason) == ("refused", "balance")


def test_head_room_that_running_requests_hold_is_told_apart_from_the_cap(ledger: Any, build: Any) -> None:
    ledger.customer("acme", cap_tokens=100)
    running = build.hold("acme", 10, 80)
    ledger.one(running)
    assert ledger.one(build.hold("acme", 10, 50)).reason == "in_flight"
    ledger.one(build.settle(running, 10, 20))
    assert ledger.one(build.hold("acme", 10, 50)).completion_tokens == 50


def test_an_inexact_hold_is_granted_whole_or_sent_back_to_be_counted(ledger: Any, build: Any) -> None:
    ledger.customer("acme", cap_tokens=100)
    assert ledger.one(build.hold("acme", 90, 20, exact=False)).reason == "inexact"
    assert ledger.one(build.hold("acme", 60, 40, exact=False)).completion_tokens == 40
    assert ledger.one(build.hold("acme", 60, 40, exact=False)).reason == "inexact"


def test_an_inexact_hold_is_refused_outright_when_nothing_at_all_can_fit(ledger: Any, build: Any) -> None:
    ledger.customer("acme", cap_tokens=1)
    assert ledger.one(build.hold("acme", 90, 20, exact=False)).reason == "cap"


def test_a_void_releases_the_whole_hold_and_may_be_repeated(ledger: Any, build: Any) -> None:
    ledger.customer("acme")
    placed = build.hold("acme", 10, 20)
    ledger.one(placed)
    void = Void(hold_id=placed.hold_id, customer_id="acme")
    first, second = ledger.one(void), ledger.one(void)
    assert (first.held_nanos, first.day_held_tokens, first.replayed) == (0, 0, False)
    assert (second.outcome, second.replayed) == ("done", True)
    assert ledger.one(build.settle(placed, 1, 1)).reason == "resolved"


def test_a_settled_hold_cannot_be_voided(ledger: Any, build: Any) -> None:
    ledger.customer("acme")
    placed = build.hold("acme", 10, 20)
    ledger.apply(placed)
    ledger.one(build.settle(placed, 10, 20))
    refused = ledger.one(Void(hold_id=placed.hold_id, customer_id="acme"))
    assert (refused.outcome, refused.reason) == ("conflict", "resolved")


def test_a_repeated_operation_gets_the_same_answer_and_changes_nothing(ledger: Any, build: Any) -> None:
    ledger.set_clock("timestamptz '2099-11-23 12:00Z'")
    ledger.customer("acme")
    placed, given = build.hold("acme", 10, 20), build.grant("acme", 5)
    paid = build.settle(placed, 10, 5)
    for operation in (placed, paid, given):
        first, second = ledger.one(operation), ledger.one(operation)
        assert second == first.model_copy(update={"replayed": True})
    assert ledger.value("SELECT count(*) FROM ledger.entry") == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("customer_id", "other"), ("key_id", "another"), ("model", "m"), ("lane", "l"), ("prompt_tokens", 11),
        ("completion_tokens", 21), ("step_tokens", 2), ("exact", False), ("prompt_price_nanos", 1),
        ("completion_price_nanos", 1), ("ttl_seconds", 61),
    ],
)  # fmt: skip
def test_the_same_hold_with_another_body_is_a_conflict_that_names_the_field(
    ledger: Any, build: Any, field: str, value: Any
) -> None:
    ledger.customer("acme")
    ledger.customer("other")
    placed = build.hold("acme", 10, 20)
    ledger.one(placed)
    conflict = ledger.one(placed.model_copy(update={field: value}))
    assert (conflict.outcome, conflict.field) == ("conflict", field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("entry_id", UUID(int=1)),
        ("prompt_tokens", 9),
        ("completion_tokens", 6),
        ("outcome", "abandoned"),
        ("customer_id", "other"),
    ],
)
def test_the_same_settlement_with_another_body_is_a_conflict_that_names_the_field(
    ledger: Any, build: Any, field: str, value: Any
) -> None:
    ledger.customer("acme")
    ledger.customer("other")
    placed = build.hold("acme", 10, 20)
    ledger.one(placed)
    paid = build.settle(placed, 10, 5)
    ledger.one(paid)
    conflict = ledger.one(paid.model_copy(update={field: value}))
    assert (conflict.outcome, conflict.field) == ("conflict", field)


def test_the_same_grant_with_another_amount_is_a_conflict_that_names_the_field(
    ledger: Any, build: Any
) -> None:
    ledger.customer("acme", dollars=0)
    given = build.grant("acme", 5)
    ledger.one(given)
    conflict = ledger.one(given.model_copy(update={"amount_nanos": 6}))
    assert (conflict.outcome, conflict.field, conflict.balance_nanos) == ("conflict", "amount_nanos", 5)


def test_an_id_that_comes_twice_in_one_call_fails_it_whole(ledger: Any, build: Any) -> None:
    ledger.customer("acme")
    placed, kept = build.hold("acme", 10, 20), build.hold("acme", 1, 1)
    ledger.one(kept)
    paid = build.settle(kept, 1, 1)
    for twice in ([placed, placed], [paid, paid], [build.grant("acme", 1)] * 2):
        with pytest.raises(psycopg.DatabaseError):
            ledger.apply(*twice)
    assert ledger.value("SELECT count(*) FROM ledger.hold WHERE state = 'open'") == 1
    assert ledger.value("SELECT count(*) FROM ledger.entry") == 1


def test_more_than_the_hold_is_absorbed_by_the_house_and_never_charged(ledger: Any, build: Any) -> None:
    ledger.customer("acme", cap_tokens=100)
    placed = build.hold("acme", 10, 20)
    ledger.one(placed)
    settled = ledger.one(build.settle(placed, 10, 25))
    assert (settled.charged_tokens, settled.absorbed_tokens) == (30, 5)
    assert settled.balance_nanos == 50 * build.dollar - 30 * build.price_nanos
    rows = ledger.admin.execute(
        "SELECT kind, debit_account, completion_tokens, amount_nanos FROM ledger.entry WHERE hold_id = %s ORDER BY seq",
        [placed.hold_id],
    ).fetchall()
    assert rows == [
        ("usage", "customer_credits", 20, 30 * build.price_nanos),
        ("absorbed", "house_absorbed", 5, 5 * build.price_nanos),
    ]


def test_an_expired_hold_is_released_by_the_next_operation(ledger: Any, build: Any) -> None:
    ledger.customer("acme", cap_tokens=100)
    ledger.set_clock("timestamptz '2026-11-23 12:00:00Z'")
    ledger.one(build.hold("acme", 10, 90, ttl_seconds=60))
    ledger.set_clock("timestamptz '2026-11-23 12:00:59Z'")
    assert ledger.one(build.hold("acme", 10, 90)).reason == "in_flight"
    ledger.set_clock("timestamptz '2026-11-23 12:01:00Z'")
    assert ledger.one(build.hold("acme", 10, 90)).completion_tokens == 90


def test_a_settlement_after_expiry_is_charged_when_it_still_fits(ledger: Any, build: Any) -> None:
    ledger.customer("acme", cap_tokens=100)
    ledger.set_clock("timestamptz '2026-11-23 12:00:00Z'")
    placed = build.hold("acme", 10, 20)
    ledger.one(placed)
    ledger.set_clock("timestamptz '2026-11-23 12:05:00Z'")
    assert ledger.one(build.settle(placed, 10, 20)).charged_tokens == 30


def test_a_settlement_after_expiry_charges_what_fits_and_the_house_absorbs_the_rest(
    ledger: Any, build: Any
) -> None:
    ledger.customer("acme", cap_tokens=100)
    ledger.set_clock("timestamptz '2026-11-23 12:00:00Z'")
    placed = build.hold("acme", 10, 50)
    ledger.one(placed)
    ledger.set_clock("timestamptz '2026-11-23 12:05:00Z'")
    other = build.hold("acme", 10, 70)
    assert ledger.one(other).completion_tokens == 70
    late = ledger.one(build.settle(placed, 10, 50))
    assert (late.charged_tokens, late.absorbed_tokens, late.day_tokens) == (20, 40, 20)
    assert ledger.one(build.settle(other, 10, 70)).day_tokens == 100


def test_a_renewed_hold_outlives_its_first_expiry(ledger: Any, build: Any) -> None:
    ledger.customer("acme")
    ledger.set_clock("timestamptz '2026-11-23 12:00:00Z'")
    placed = build.hold("acme", 10, 20, ttl_seconds=60)
    ledger.one(placed)
    ledger.set_clock("timestamptz '2026-11-23 12:00:50Z'")
    renewed = ledger.one(Renew(hold_id=placed.hold_id, customer_id="acme", ttl_seconds=60))
    assert renewed.expires_in_seconds == 60
    ledger.set_clock("timestamptz '2026-11-23 12:01:40Z'")
    assert ledger.one(Show(customer_id="acme")).day_held_tokens == 30
    ledger.set_clock("timestamptz '2026-11-23 12:01:50Z'")
    expired = ledger.one(Renew(hold_id=placed.hold_id, customer_id="acme", ttl_seconds=60))
    assert (expired.outcome, expired.reason, expired.day_held_tokens) == ("refused", "expired", 0)


def test_a_request_that_crosses_midnight_belongs_to_the_day_it_was_admitted(ledger: Any, build: Any) -> None:
    ledger.set_clock("timestamptz '2026-11-23 23:59:59.999Z'")
    ledger.customer("acme", cap_tokens=100)
    placed = build.hold("acme", 10, 90)
    assert ledger.one(placed).usage_day.isoformat() == "2026-11-23"
    ledger.set_clock("timestamptz '2026-11-24 00:00:10Z'")
    today = ledger.one(build.hold("acme", 10, 90))
    assert (today.completion_tokens, today.usage_day.isoformat()) == (90, "2026-11-24")
    settled = ledger.one(build.settle(placed, 10, 90))
    assert (settled.usage_day.isoformat(), settled.charged_tokens, settled.day_tokens) == (
        "2026-11-23",
        100,
        0,
    )
    assert ledger.admin.execute(
        "SELECT day::text, prompt_tokens + completion_tokens, held_tokens FROM ledger.day_usage ORDER BY day"
    ).fetchall() == [("2026-11-23", 100, 0), ("2026-11-24", 0, 100)]


def test_a_hold_of_yesterday_can_be_voided_today(ledger: Any, build: Any) -> None:
    ledger.set_clock("timestamptz '2026-11-23 23:59:59Z'")
    ledger.customer("acme", cap_tokens=100)
    placed = build.hold("acme", 10, 90)
    ledger.one(placed)
    ledger.set_clock("timestamptz '2026-11-24 00:00:10Z'")
    ledger.one(Void(hold_id=placed.hold_id, customer_id="acme"))
    assert ledger.value("SELECT sum(held_tokens) FROM ledger.day_usage") == 0


def test_a_late_settlement_of_yesterday_still_respects_the_cap_of_yesterday(ledger: Any, build: Any) -> None:
    ledger.set_clock("timestamptz '2026-11-23 23:00:00Z'")
    ledger.customer("acme", cap_tokens=100)
    lost, used = build.hold("acme", 10, 50), build.hold("acme", 10, 70)
    ledger.one(lost)
    ledger.set_clock("timestamptz '2026-11-23 23:30:00Z'")
    ledger.one(used)
    ledger.one(build.settle(used, 10, 70))
    ledger.set_clock("timestamptz '2026-11-24 08:00:00Z'")
    late = ledger.one(build.settle(lost, 10, 50))
    assert (late.charged_tokens, late.absorbed_tokens, late.usage_day.isoformat()) == (20, 40, "2026-11-23")


def test_a_clock_that_steps_back_reopens_no_day(ledger: Any, build: Any) -> None:
    ledger.set_clock("timestamptz '2026-11-23 12:00:00Z'")
    ledger.customer("acme", cap_tokens=100)
    ledger.set_clock("timestamptz '2026-11-24 00:00:01Z'")
    placed = build.hold("acme", 10, 90)
    ledger.one(placed)
    ledger.set_clock("timestamptz '2026-11-23 23:59:59Z'")
    assert ledger.one(build.hold("acme", 10, 10)).reason == "in_flight"
    assert ledger.one(build.settle(placed, 10, 90)).usage_day.isoformat() == "2026-11-24"


def test_a_raised_cap_counts_at_once_and_a_lowered_one_stops_new_requests(ledger: Any, build: Any) -> None:
    ledger.customer("acme", cap_tokens=100)
    running = build.hold("acme", 10, 90)
    ledger.one(running)
    ledger.one(build.cap("acme", 200))
    assert ledger.one(build.hold("acme", 10, 90)).completion_tokens == 90
    ledger.one(build.cap("acme", 50))
    assert ledger.one(build.settle(running, 10, 90)).charged_tokens == 100
    assert ledger.one(build.hold("acme", 1, 1)).reason == "cap"
    assert ledger.admin.execute(
        "SELECT previous_cap_tokens, cap_tokens FROM ledger.cap_change ORDER BY changed_at, operation_id"
    ).fetchall() == [(None, 100), (100, 200), (200, 50)]


def test_opening_an_account_twice_changes_nothing(ledger: Any) -> None:
    opened = OpenAccount(operation_id=uuid7(), customer_id="acme", cap_tokens=100, actor="test")
    again = OpenAccount(operation_id=uuid7(), customer_id="acme", cap_tokens=999, actor="test")
    assert not ledger.one(opened).replayed
    assert ledger.one(opened).replayed
    assert (ledger.one(again).replayed, ledger.one(again).cap_tokens) == (True, 100)


def test_operations_on_an_unknown_customer_or_hold_are_refused(ledger: Any, build: Any) -> None:
    assert ledger.one(build.hold("nobody", 1, 1)).reason == "unknown_customer"
    assert ledger.one(Show(customer_id="nobody")).reason == "unknown_customer"
    ledger.customer("acme")
    assert ledger.one(build.settle(build.hold("acme", 1, 1), 1, 1)).reason == "unknown_hold"


def test_a_batch_is_applied_in_order_with_one_result_for_each(ledger: Any, build: Any) -> None:
    ledger.customer("zeta", cap_tokens=100)
    ledger.customer("acme", cap_tokens=100)
    results = ledger.apply(
        build.hold("zeta", 10, 50),
        build.hold("nobody", 1, 1),
        build.hold("acme", 10, 80),
        build.cap("zeta", 130),
        build.hold("zeta", 10, 60),
        Show(customer_id="acme"),
    )
    assert [result.outcome for result in results] == ["done", "refused", "done", "done", "done", "done"]
    assert (results[4].day_held_tokens, results[5].day_held_tokens) == (130, 90)


def test_refusals_at_the_cap_are_counted_for_the_statement(ledger: Any, build: Any) -> None:
    ledger.customer("acme", cap_tokens=1)
    ledger.apply(build.hold("acme", 1, 1), build.hold("acme", 1, 1))
    assert ledger.value("SELECT refused_requests FROM ledger.day_usage") == 2
