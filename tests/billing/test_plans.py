"""Plans and prices: what the example says, what is refused and how, and how the file is followed."""

import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darktree_billing.plans import (
    MAX_PLANS,
    PlansError,
    PlansFile,
    max_spend_per_day_nanos,
    parse_plans,
    tokens_bought,
)
from darktree_billing.yaml_document import MAX_FILE_BYTES
from darktree_kit.money import MAX_AMOUNT_NANOS, parse_dollars
from darktree_ledger.schemas import MAX_PRICE_NANOS

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "plans.yaml"
GOOD = EXAMPLE.read_text()


def test_the_example_says_what_the_product_promises() -> None:
    catalog = parse_plans(EXAMPLE.read_bytes()).catalog()
    offers = [
        (
            plan.id,
            plan.price_nanos,
            plan.default_cap_tokens,
            plan.buys[0].tokens,
            plan.buys[0].max_spend_per_day_nanos,
        )
        for plan in catalog.plans
    ]
    assert offers == [
        ("solo", parse_dollars("50"), 2_000, 66_666, parse_dollars("1.50")),
        ("team", parse_dollars("150"), 7_000, 200_000, parse_dollars("5.25")),
        ("scale", parse_dollars("300"), 15_000, 400_000, parse_dollars("11.25")),
    ]
    models = [
        (model.id, model.prompt_price_nanos, model.completion_price_nanos, model.default_completion_tokens)
        for model in catalog.models
    ]
    assert models == [
        ("qwen25-14b-awq", 750_000, 750_000, 1024),
        ("qwen25-32b-awq", 750_000, 750_000, 1024),
    ]


@pytest.mark.parametrize(
    ("old", "new", "place", "advice"),
    [
        ("relea", "rela", "models.0.relased", "there is no such field"),
        ("relea", "rela", "models.0.released", "this field is required"),
        ('"50"', "50.0", "plans.0.price", "in quotes"),
        ('"50"', "50", "plans.0.price", "in quotes"),
        ('"50"', '"5O"', "plans.0.price", "'5O' is not an amount of dollars"),
        ('"50"', '"0"', "plans.0.price", "greater than 0"),
        ('"50"', '"-50"', "plans.0.price", "greater than 0"),
        ('"50"', '"50.001"', "plans.0.price", "whole number of cents"),
        ('"50"', '"1e3"', "plans.0.price", "not an amount of dollars"),
        ('"0.75"', '"0.0000001"', "models.0.prompt_price_per_thousand", "not a whole number of nano-dollars"),
        ('"0.75"', '"-0.75"', "models.0.prompt_price_per_thousand", "not a whole number of nano-dollars"),
        (
            '"0.75"',
            '"10001"',
            "models.0.prompt_price_per_thousand",
            f"less than or equal to {MAX_PRICE_NANOS}",
        ),
        ("id: team", "id: solo", "plans", "two have the id 'solo'"),
        ("id: qwen25-32b-awq", "id: qwen25-14b-awq", "models", "two have the id 'qwen25-14b-awq'"),
        ("id: solo", "id: 'so lo'", "plans.0.id", "should match pattern"),
        (
            "default_cap_tokens: 2000",
            "default_cap_tokens: -1",
            "plans.0.default_cap_tokens",
            "greater than or equal to 0",
        ),
        (
            "default_cap_tokens: 2000",
            "default_cap_tokens: 2000.5",
            "plans.0.default_cap_tokens",
            "valid integer",
        ),
        ("tokens: 1024", "tokens: 0", "models.0.default_completion_tokens", "greater than or equal to 1"),
        ("2024-09-19", "soon", "models.0.released", "valid date"),
        ("2024-09-19", "2024-13-19", "this is not YAML", "month must be in 1..12"),
        ("    display_name: Solo", "    id: other", "this is not YAML", "'id' is written twice"),
        ("plans:", "plans: [", "this is not YAML", "line "),
    ],
)
def test_a_mistake_is_refused_with_its_place_and_what_to_do(
    old: str, new: str, place: str, advice: str
) -> None:
    assert old in GOOD
    with pytest.raises(PlansError) as refused:
        parse_plans(GOOD.replace(old, new, 1 if old != "relea" else -1).encode(), "plans.yaml")
    message = str(refused.value)
    assert message.startswith("plans.yaml: ")
    assert place in message
    assert advice in message


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"plans: []\nmodels: []\n", b"\xff\xfe\xff", b"- " * 2000 + b"x"]
)
def test_what_is_no_plans_file_at_all_is_refused(content: bytes) -> None:
    with pytest.raises(PlansError):
        parse_plans(content)


def test_a_file_has_a_largest_size_and_a_largest_number_of_plans() -> None:
    with pytest.raises(PlansError, match="larger than"):
        parse_plans(GOOD.encode() + b"#" * MAX_FILE_BYTES)
    plan = '  - {{id: p{}, display_name: P, price: "1", default_cap_tokens: 1}}\n'
    many = "plans:\n" + "".join(plan.format(number) for number in range(MAX_PLANS + 1))
    with pytest.raises(PlansError, match=f"at most {MAX_PLANS}"):
        parse_plans((many + GOOD[GOOD.index("models:") :]).encode())


@given(st.integers(1, MAX_AMOUNT_NANOS), st.integers(1, MAX_PRICE_NANOS))
def test_a_bundle_buys_all_the_tokens_it_pays_for_and_not_one_more(
    price_nanos: int, token_nanos: int
) -> None:
    tokens = tokens_bought(price_nanos, token_nanos)
    assert tokens is not None
    assert tokens * token_nanos <= price_nanos < (tokens + 1) * token_nanos


def test_a_free_model_has_no_number_of_tokens_and_costs_nothing() -> None:
    assert tokens_bought(1, 0) is None
    assert max_spend_per_day_nanos(7_000, 0) == 0
    free = GOOD.replace('"0.75"', '"0"')
    assert [bundle.tokens for bundle in parse_plans(free.encode()).catalog().plans[0].buys] == [None, None]


def test_the_dearer_kind_of_token_decides_what_a_bundle_surely_buys() -> None:
    dearer = GOOD.replace('completion_price_per_thousand: "0.75"', 'completion_price_per_thousand: "1.50"', 1)
    assert parse_plans(dearer.encode()).catalog().plans[0].buys[0].tokens == 33_333


def test_a_changed_file_is_followed_and_a_broken_one_keeps_the_last_good(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "plans.yaml"
    path.write_text(GOOD)
    plans_file = PlansFile(path)
    first = plans_file.current()
    assert plans_file.current() is first  # not parsed again while it stays the same

    path.write_text(GOOD.replace('"50"', '"60"'))
    dearer = plans_file.current()
    assert dearer.plans[0].price_nanos == parse_dollars("60")

    with caplog.at_level(logging.ERROR):
        path.write_text(GOOD.replace('"50"', "60.0"))
        assert plans_file.current() is dearer
    assert plans_file.problem is not None
    assert "plans.0.price" in plans_file.problem
    assert [record.levelname for record in caplog.records] == ["ERROR"]  # once, not at every request
    assert plans_file.current() is dearer

    path.unlink()
    assert plans_file.current() is dearer
    assert "No such file" in str(plans_file.problem)

    path.write_text(GOOD)
    assert plans_file.current() == first
    assert plans_file.problem is None


def test_a_file_that_is_swapped_for_another_of_equal_size_and_time_is_followed(tmp_path: Path) -> None:
    path, other = tmp_path / "plans.yaml", tmp_path / "new.yaml"
    path.write_text(GOOD)
    other.write_text(GOOD.replace('"50"', '"70"'))
    stat = path.stat()
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    plans_file = PlansFile(path)
    other.replace(path)  # as a mounted ConfigMap is
    assert plans_file.current().plans[0].price_nanos == parse_dollars("70")


def test_billing_does_not_start_without_a_usable_plans_file(tmp_path: Path) -> None:
    with pytest.raises(PlansError, match="No such file or directory; set DARKTREE_BILLING_PLANS_FILE"):
        PlansFile(tmp_path / "none.yaml")
    with pytest.raises(PlansError, match="set DARKTREE_BILLING_PLANS_FILE"):
        PlansFile(tmp_path)
