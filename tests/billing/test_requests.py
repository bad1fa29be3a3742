"""What customers ask the team for: open once, decided once, and an approved cap is in the ledger."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from darktree_billing import requests
from darktree_billing.client import AdminClient
from darktree_billing.errors import RequestDecided, TooManyOpen, UnknownCustomer, UnknownModel
from darktree_billing.plans import Plans, PlansFile
from darktree_billing.request_schemas import (
    AskCap,
    AskLane,
    CapRequestView,
    DecideCap,
    DecideLane,
    LaneRequestView,
)
from darktree_billing.schemas import AdjustCredits, CreateCustomer, GrantCredits, SetCap
from darktree_kit.db import Database
from darktree_kit.errors import ApiError
from darktree_kit.ids import uuid7
from darktree_kit.money import parse_dollars

ADA = "ada@acme.example"
TEAM = "grace@darktree.example"


@pytest.fixture
async def database(platform: Any) -> AsyncIterator[Database]:
    opened = Database(platform.settings.database_url.get_secret_value())
    yield opened
    await opened.close()


@pytest.fixture
def plans(platform: Any) -> Plans:
    return PlansFile(platform.plans_file).current()


@pytest.fixture
async def customer_id(admin: AdminClient) -> str:
    return (await admin.create_customer(CreateCustomer(name="Asks", plan="solo"))).id


async def ask_cap(database: Database, customer_id: str, cap_tokens: int = 9_000) -> CapRequestView:
    async with database.sessions.begin() as session:
        body = AskCap(cap_tokens=cap_tokens, reason="a busy week")
        return await requests.ask_cap(session, customer_id, body, ADA)


async def ask_lane(database: Database, plans: Plans, customer_id: str, **changes: Any) -> LaneRequestView:
    asked = {"model": "qwen25-14b-awq", "tokens_per_day": 5_000_000, "reason": "a launch"} | changes
    async with database.sessions.begin() as session:
        return await requests.ask_lane(session, plans, customer_id, AskLane.model_validate(asked), ADA)


async def test_an_approved_request_sets_the_cap_with_its_reason(
    database: Database, admin: AdminClient, customer_id: str
) -> None:
    asked = await ask_cap(database, customer_id)
    assert (asked.state, asked.asked_cap_tokens, asked.asked_by) == ("open", 9_000, ADA)
    [listed] = (await admin.cap_requests(customer_id, "open")).data
    assert listed == asked
    decided = await admin.decide_cap(asked.id, DecideCap(approve=True, note="enjoy"))
    assert (decided.state, decided.decided_cap_tokens, decided.decided_by) == ("approved", 9_000, "admin")
    assert decided.decided_at is not None
    cap = await admin.cap(customer_id)
    assert cap.cap_tokens == 9_000
    assert (cap.changes[0].reason, cap.changes[0].actor) == ("asked for: a busy week", "admin")
    assert (await admin.cap_requests(customer_id, "open")).data == []


async def test_an_approval_may_set_another_cap_than_the_one_that_was_asked_for(
    database: Database, admin: AdminClient, customer_id: str
) -> None:
    asked = await ask_cap(database, customer_id)
    decided = await admin.decide_cap(asked.id, DecideCap(approve=True, cap_tokens=4_000))
    assert (decided.asked_cap_tokens, decided.decided_cap_tokens) == (9_000, 4_000)
    assert (await admin.cap(customer_id)).cap_tokens == 4_000


async def test_a_declined_request_leaves_the_cap_and_needs_a_word_for_the_customer(
    database: Database, admin: AdminClient, customer_id: str
) -> None:
    asked = await ask_cap(database, customer_id)
    with pytest.raises(ApiError) as refused:
        await admin.decide_cap(asked.id, DecideCap(approve=False))
    assert (refused.value.answer_status, refused.value.param) == (400, "note")
    decided = await admin.decide_cap(asked.id, DecideCap(approve=False, note="not this month"))
    assert (decided.state, decided.note, decided.decided_cap_tokens) == ("declined", "not this month", None)
    assert (await admin.cap(customer_id)).cap_tokens == 2_000
    assert (await ask_cap(database, customer_id)).state == "open"  # asking again is allowed


async def test_a_request_is_decided_once_and_the_same_decision_again_changes_nothing(
    database: Database, admin: AdminClient, customer_id: str
) -> None:
    asked = await ask_cap(database, customer_id)
    first = await admin.decide_cap(asked.id, DecideCap(approve=True))
    await admin.set_cap(customer_id, SetCap(cap_tokens=1_000))
    assert await admin.decide_cap(asked.id, DecideCap(approve=True)) == first
    assert (await admin.cap(customer_id)).cap_tokens == 1_000
    for other in (DecideCap(approve=False, note="no"), DecideCap(approve=True, cap_tokens=5)):
        with pytest.raises(ApiError) as refused:
            await admin.decide_cap(asked.id, other)
        assert (refused.value.answer_status, refused.value.answer_code) == (409, RequestDecided.code)


async def test_an_approval_whose_commit_was_lost_is_repeated_and_not_doubled(
    database: Database, admin: AdminClient, customer_id: str
) -> None:
    asked = await ask_cap(database, customer_id)
    lost = SetCap(
        cap_tokens=9_000,
        reason="asked for: a busy week",
        operation_id=requests.cap_operation_id(asked.id),
    )
    await admin.set_cap(customer_id, lost)  # what reached the ledger before billing went away
    assert (await admin.decide_cap(asked.id, DecideCap(approve=True))).state == "approved"
    assert [change.cap_tokens for change in (await admin.cap(customer_id)).changes] == [9_000, 2_000]


async def test_two_who_ask_at_once_leave_one_open_request(database: Database, customer_id: str) -> None:
    answers = await asyncio.gather(
        *(ask_cap(database, customer_id) for _ in range(4)), return_exceptions=True
    )
    refused = [type(answer) for answer in answers if not isinstance(answer, CapRequestView)]
    assert refused == [TooManyOpen] * 3


async def test_lists_are_paged_newest_first(database: Database, admin: AdminClient, plans: Plans) -> None:
    made = []
    for number in range(3):
        customer = await admin.create_customer(CreateCustomer(name=f"Paged {number}", plan="solo"))
        made.append((await ask_lane(database, plans, customer.id)).id)
    first = await admin.lane_requests(limit=2)
    assert [request.id for request in first.data] == [made[2], made[1]]
    second = await admin.lane_requests(limit=2, after=first.next)
    assert second.data[0].id == made[0]
    capped = await admin.cap_requests(limit=1)
    assert len(capped.data) == 1


async def test_a_lane_is_asked_for_accepted_and_comes_with_its_manifest(
    database: Database, admin: AdminClient, plans: Plans, customer_id: str
) -> None:
    asked = await ask_lane(database, plans, customer_id, first_token_milliseconds=400)
    assert f"customerRef: {customer_id}" in await admin.lane_manifest(asked.id)
    decided = await admin.decide_lane(asked.id, DecideLane(accept=True, note="on Monday"))
    assert (decided.state, decided.note, decided.decided_by) == ("accepted", "on Monday", "admin")
    assert await admin.decide_lane(asked.id, DecideLane(accept=True)) == decided
    with pytest.raises(ApiError) as refused:
        await admin.decide_lane(asked.id, DecideLane(accept=False, note="no"))
    assert refused.value.answer_code == RequestDecided.code


async def test_a_model_that_has_no_lane_of_its_own_and_a_stranger_are_refused(
    database: Database, plans: Plans, customer_id: str
) -> None:
    with pytest.raises(UnknownModel, match="qwen25-14b-awq"):
        await ask_lane(database, plans, customer_id, model="gpt-99")
    with pytest.raises(UnknownCustomer):
        await ask_lane(database, plans, "nobody")
    with pytest.raises(UnknownCustomer):
        await ask_cap(database, "nobody")


async def test_a_customer_has_so_many_lane_requests_open_and_no_more(
    database: Database, plans: Plans, customer_id: str
) -> None:
    for _ in range(requests.MAX_OPEN_LANE_REQUESTS):
        await ask_lane(database, plans, customer_id)
    with pytest.raises(TooManyOpen):
        await ask_lane(database, plans, customer_id)


@pytest.mark.parametrize("path", ["cap-requests/{}/decision", "lane-requests/{}/decision"])
def test_a_request_that_there_is_not_is_not_found(http: Any, path: str) -> None:
    kind = "capreq_" if path.startswith("cap") else "lanereq_"
    body = {"approve": False, "note": "n"} if path.startswith("cap") else {"accept": True}
    answer = http.post("/admin/" + path.format(kind + "0" * 32), json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_request")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE billing.cap_request SET asked_cap_tokens = 1",
        "UPDATE billing.lane_request SET customer_id = 'x'",
        "DELETE FROM billing.cap_request",
        "TRUNCATE billing.lane_request",
    ],
)
def test_what_was_asked_stays_as_it_was_asked(platform: Any, statement: str) -> None:
    with (
        psycopg.connect(platform.database.url_as("darktree_billing")) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(statement.encode())


async def test_a_balance_is_corrected_up_and_down_and_never_below_what_is_there(
    admin: AdminClient, customer_id: str
) -> None:
    await admin.grant(customer_id, GrantCredits(dollars="10", reason="welcome"))
    up = await admin.adjust(customer_id, AdjustCredits(dollars="2.50", reason="our mistake"))
    assert (up.amount_nanos, up.balance_nanos) == (parse_dollars("2.50"), parse_dollars("12.50"))
    body = AdjustCredits(dollars="-2.50", reason="given twice", adjustment_id=uuid7())
    down, again = await admin.adjust(customer_id, body), await admin.adjust(customer_id, body)
    assert (down.balance_nanos, down.replayed, again.replayed) == (parse_dollars("10"), False, True)
    newest = (await admin.entries(customer_id)).data[0]
    assert (newest.kind, newest.reason, newest.actor) == ("adjustment", "given twice", "admin")
    for dollars, code, status in (("-10.01", "exceeds_balance", 409), ("0", "invalid_value", 400)):
        with pytest.raises(ApiError) as refused:
            await admin.adjust(customer_id, AdjustCredits(dollars=dollars, reason="too much"))
        assert (refused.value.answer_code, refused.value.answer_status) == (code, status)
