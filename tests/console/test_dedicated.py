"""A customer asks for a lane of their own, reads the answer, and sees nobody else's."""

from typing import Any

import pytest

from darktree_billing.requests import MAX_OPEN_LANE_REQUESTS

ASKED = {"model": "qwen25-14b-awq", "tokens_per_day": "5,000,000", "reason": "our support desk"}


def test_who_asks_sees_the_request_and_then_the_answer(platform: Any) -> None:
    member = platform.sign_up("grace@lanes.test")
    assert member.submit("/console/dedicated", **ASKED, first_token_milliseconds="400").status_code == 303
    page = member.page("/console/dedicated")
    for told in ("5,000,000", "400 ms", "waits for the team"):
        assert told in page
    staff = platform.sign_in("ops@darktree.test")
    ((request_id,),) = platform.sql(
        "SELECT id FROM billing.lane_request WHERE customer_id = %s", platform.customer_of("grace@lanes.test")
    )
    path = f"/admin/console/dedicated/{request_id}"
    assert "our support desk" in staff.page(path)
    assert staff.submit(path, decision="accept", note="It serves from Monday").status_code == 303
    assert "It serves from Monday" in member.page("/console/dedicated")
    other = platform.sign_up("other@lanes.test")
    assert "5,000,000" not in other.page("/console/dedicated")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tokens_per_day": "many"}, "Enter a whole number of tokens"),
        ({"tokens_per_day": "0"}, "Enter a whole number of tokens"),
        ({"tokens_per_day": "10,000,000,001"}, "at most 10,000,000,000"),
        ({"first_token_milliseconds": "fast"}, "Enter 10 to 600,000 milliseconds"),
        ({"reason": ""}, "Say what it is for"),
        ({"reason": "two\nlines"}, "Write one line"),
        ({"model": "gpt-99"}, "There is no model"),
    ],
)
def test_what_cannot_be_asked_is_explained_beside_what_was_typed(
    platform: Any, changes: dict[str, str], told: str
) -> None:
    member = platform.sign_in("picky@lanes.test")
    if platform.sql("SELECT 1 FROM billing.member WHERE email = 'picky@lanes.test' AND customer_id IS NULL"):
        member = platform.sign_up("picky@lanes.test")
    refused = member.submit("/console/dedicated", **(ASKED | changes))
    assert refused.status_code == 400
    assert told in refused.text
    assert platform.sql("SELECT count(*) FROM billing.lane_request WHERE asked_by = 'picky@lanes.test'") == [
        (0,)
    ]


def test_so_many_wait_and_no_more(platform: Any) -> None:
    member = platform.sign_up("eager@lanes.test")
    for _ in range(MAX_OPEN_LANE_REQUESTS):
        assert member.submit("/console/dedicated", **ASKED).status_code == 303
    refused = member.submit("/console/dedicated", **ASKED)
    assert (refused.status_code, "not answered yet" in refused.text) == (400, True)
