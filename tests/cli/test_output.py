"""What commands print."""

import json

import pytest

from darktree_billing.schemas import BundleView
from darktree_cli.output import Output, dollars, show, show_fields, table


def test_a_table_aligns_words_left_and_numbers_right() -> None:
    assert table(("id", "price", "cap"), [("solo", "$50.00", 2000), ("scale", "$300.00", 15000)]) == (
        "ID       PRICE    CAP\n"
        "solo    $50.00   2000\n"
        "scale  $300.00  15000"
    )  # fmt: skip


def test_what_is_missing_is_a_dash() -> None:
    assert table(("id", "email"), [("acme", None)]).splitlines()[1] == "acme  -"


def test_json_is_the_services_own_answer(capsys: pytest.CaptureFixture[str]) -> None:
    view = BundleView(model="m", tokens=None, max_spend_per_day_nanos=1_500_000_000)
    show(Output.JSON, view, ("model",), [("m",)], note="left out")
    assert json.loads(capsys.readouterr().out) == view.model_dump()
    show_fields(Output.JSON, view, [("model", "m")])
    assert json.loads(capsys.readouterr().out) == view.model_dump()


def test_an_empty_list_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    show(Output.TABLE, [], ("id",), [])
    assert capsys.readouterr().out == "(none)\n"


def test_amounts_are_exact_dollars() -> None:
    assert [dollars(nanos) for nanos in (0, 50_000_000_000, 49_999_250_000, -750_000)] == [
        "$0.00",
        "$50.00",
        "$49.99925",
        "-$0.00075",
    ]
