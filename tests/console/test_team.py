"""The platform team's console: only for the team, and what it does is done in its member's name."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from darktree_billing import requests
from darktree_billing.plans import PlansFile
from darktree_billing.request_schemas import AskCap, AskLane
from darktree_kit.db import Database
from darktree_kit.ids import uuid7
from darktree_ledger.client import LedgerClient
from darktree_ledger.schemas import EntryView, Hold, OpenAccount

TEAM = "ops@darktree.test"
LISTS = ["", "/customers", "/caps", "/dedicated", "/holds", "/lanes", "/reconciliation"]


@pytest.fixture(scope="module")
def staff(platform: Any) -> Any:
    return platform.sign_in(TEAM)


@pytest.fixture
def customer_id(platform: Any) -> str:
    return make_customer(platform)


def make_customer(platform: Any, name: str = "Acme Ltd", **more: str) -> str:
    body = {"name": name, "plan": "solo"} | more
    headers = {"Authorization": f"Bearer {platform.settings.admin_token.get_secret_value()}"}
    answer = platform.browser().post("/admin/customers", json=body, headers=headers)
    assert answer.status_code in {200, 201}, answer.text
    return str(answer.json()["id"])


def within(platform: Any, do: Callable[[AsyncSession], Awaitable[Any]]) -> Any:
    """Do something in a transaction of billing's own role."""

    async def run() -> Any:
        database = Database(platform.settings.database_url.get_secret_value())
        try:
            async with database.sessions.begin() as session:
                return await do(session)
        finally:
            await database.close()

    return asyncio.run(run())


def of_ledger(platform: Any, token: str, do: Callable[[LedgerClient], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        ledger = LedgerClient(platform.ledger_url, token)
        try:
            return await do(ledger)
        finally:
            await ledger.close()

    return asyncio.run(run())


def entries(platform: Any, customer_id: str) -> list[EntryView]:
    token = platform.settings.ledger_token.get_secret_value()
    page = of_ledger(platform, token, lambda ledger: ledger.entries(customer_id))
    found: list[EntryView] = page.data
    return found


def fields_of(page: str, action: str) -> dict[str, str]:
    """Return the hidden fields of the form that goes to this path."""
    form = re.search(rf'<form[^>]*action="{re.escape(action)}".*?</form>', page, re.DOTALL)
    assert form is not None, action
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form[0]))


def test_the_front_door_leads_to_the_overview(staff: Any) -> None:
    answer = staff.get("/admin")
    assert (answer.status_code, answer.headers["location"]) == (303, "/admin/console")
    assert "Nobody waits for a cap." in staff.page("/admin/console")


@pytest.mark.parametrize("path", LISTS)
def test_only_the_team_sees_it(platform: Any, staff: Any, path: str) -> None:
    assert staff.get("/admin/console" + path).status_code == 200
    stranger = platform.browser().get("/admin/console" + path)
    assert stranger.status_code == 303
    assert stranger.headers["location"].startswith("/console/sign-in")


def test_a_customers_member_is_told_that_it_is_not_theirs(platform: Any) -> None:
    member = platform.sign_up("ada@acme.test")
    for path in LISTS:
        assert member.get("/admin/console" + path).status_code == 403


@pytest.mark.parametrize("what", ["id", "name", "email", "member"])
def test_a_customer_is_found_by_what_one_remembers(platform: Any, staff: Any, what: str) -> None:
    suffix = uuid7().hex
    customer_id = make_customer(
        platform, f"Globex {suffix} & Sons", id=f"globex-{suffix}", email=f"{suffix}@globex.test"
    )
    platform.sql(
        "INSERT INTO billing.member (id, email, customer_id) VALUES (%s, %s, %s)",
        f"mem_{suffix}",
        f"m{suffix}@elsewhere.test",
        customer_id,
    )
    asked = {
        "id": f"globex-{suffix}"[:-3],
        "name": f"{suffix} & s",
        "email": f"{suffix}@globex",
        "member": f"m{suffix}@ELSEWHERE",
    }[what]
    page = staff.get("/admin/console/customers", params={"q": asked}).text
    assert f'href="/admin/console/customers/{customer_id}"' in page
    assert "Nobody found" in staff.get("/admin/console/customers", params={"q": "%_"}).text


def test_customers_are_listed_in_pages(platform: Any, staff: Any) -> None:
    suffix = uuid7().hex[-12:]
    for number in range(51):
        make_customer(platform, f"Paged {suffix}", id=f"paged-{suffix}-{number:02}")
    first = staff.get("/admin/console/customers", params={"q": f"paged {suffix}"}).text
    following = re.search(r'href="(/admin/console/customers\?[^"]*after=[^"]*)" rel="next"', first)
    assert following is not None
    second = staff.page(following[1].replace("&amp;", "&"))
    assert f"paged-{suffix}-49" in first
    assert f"paged-{suffix}-50" in second
    assert 'rel="next"' not in second


def test_a_grant_carries_its_giver_and_its_reason_and_a_form_sent_twice_gives_once(
    platform: Any, staff: Any, customer_id: str
) -> None:
    root = f"/admin/console/customers/{customer_id}"
    fields = fields_of(staff.page(root), f"{root}/grant") | {"dollars": "12.50", "reason": "a warm welcome"}
    for _ in range(2):
        assert staff.submit(f"{root}/grant", **fields).status_code == 303
    assert "Gave $12.50. The balance is $12.50." in staff.page(root)
    [entry] = entries(platform, customer_id)
    assert (entry.kind, entry.reason, entry.actor) == ("grant", "a warm welcome", TEAM)
    again = staff.submit(f"{root}/grant", **(fields | {"dollars": "99"}))
    assert again.status_code == 409
    assert "used before" in again.text


@pytest.mark.parametrize(
    ("what", "fields", "told"),
    [
        ("grant", {"dollars": "-1", "reason": "r"}, "must be more than nothing"),
        ("grant", {"dollars": "much", "reason": "r"}, "is not an amount of dollars"),
        ("grant", {"dollars": "1", "reason": " "}, "Say why"),
        ("grant", {"dollars": "1", "reason": "two\nlines"}, "String should match"),
        ("adjust", {"dollars": "-1", "reason": "r"}, "has less than that"),
        ("cap", {"cap_tokens": "-1", "reason": "r"}, "a whole number of tokens"),
        ("cap", {"cap_tokens": "100,000,001", "reason": "r"}, "a whole number of tokens"),
        ("freeze", {"frozen": "yes", "reason": ""}, "Say why"),
    ],
)
def test_what_cannot_be_done_is_explained_beside_what_was_typed(
    platform: Any, staff: Any, customer_id: str, what: str, fields: dict[str, str], told: str
) -> None:
    root = f"/admin/console/customers/{customer_id}"
    hidden = fields_of(staff.page(root), f"{root}/{what}")
    refused = staff.submit(f"{root}/{what}", **(hidden | fields))
    assert refused.status_code in {400, 409}
    assert told in refused.text
    assert entries(platform, customer_id) == []


def test_a_balance_is_corrected_and_a_cap_is_set_in_the_members_name(
    platform: Any, staff: Any, customer_id: str
) -> None:
    root = f"/admin/console/customers/{customer_id}"
    fields = fields_of(staff.page(root), f"{root}/adjust")
    assert staff.submit(f"{root}/adjust", **fields, dollars="5", reason="our mistake").status_code == 303
    fields = fields_of(staff.page(root), f"{root}/cap")
    assert staff.submit(f"{root}/cap", **fields, cap_tokens="9,000", reason="a big client").status_code == 303
    page = staff.page(root)
    assert "The daily cap is 9,000 tokens." in page
    assert f'9,000 · a big client <span class="muted">({TEAM})</span>' in page
    [entry] = entries(platform, customer_id)
    assert (entry.kind, entry.actor) == ("adjustment", TEAM)


def test_a_frozen_customer_is_shown_as_such_until_someone_lets_go(
    platform: Any, staff: Any, customer_id: str
) -> None:
    root = f"/admin/console/customers/{customer_id}"
    staff.submit(f"{root}/freeze", frozen="yes", reason="a stolen card")
    page = staff.page(root)
    assert "a stolen card" in page
    assert '<span class="badge bad">frozen</span>' in page
    assert '<span class="badge bad">frozen</span>' in staff.page(f"/admin/console/customers?q={customer_id}")
    fields = fields_of(page, f"{root}/freeze")
    assert fields["frozen"] == "no"
    staff.submit(f"{root}/freeze", frozen="no", reason="all well")
    assert '<span class="badge bad">frozen</span>' not in staff.page(root)


def test_a_key_is_revoked_only_on_its_own_customers_page(platform: Any, staff: Any, customer_id: str) -> None:
    headers = {"Authorization": f"Bearer {platform.settings.admin_token.get_secret_value()}"}
    browser = platform.browser()
    made = browser.post(
        f"/admin/customers/{customer_id}/keys", json={"name": "laptop"}, headers=headers
    ).json()
    root = f"/admin/console/customers/{customer_id}"
    page = staff.page(root)
    assert "laptop" in page
    assert made["key"] not in page
    other = make_customer(platform, "Other")
    wrong = f"/admin/console/customers/{other}/keys/{made['id']}/revoke"
    assert staff.submit(wrong).status_code == 404
    assert "Revoke for good" in staff.page(root)
    assert staff.submit(f"{root}/keys/{made['id']}/revoke").status_code == 303
    assert "Revoke for good" not in staff.page(root)


def test_a_cap_request_is_seen_and_answered(platform: Any, staff: Any, customer_id: str) -> None:
    body = AskCap(cap_tokens=9_000, reason="a busy week")
    asked = within(platform, lambda session: requests.ask_cap(session, customer_id, body, "ada@acme.test"))
    path = f"/admin/console/caps/{asked.id}"
    assert path in staff.page("/admin/console")
    assert path in staff.page("/admin/console/caps?state=open")
    assert "a busy week" in staff.page(f"/admin/console/customers/{customer_id}")
    unexplained = staff.submit(path, decision="decline")
    assert (unexplained.status_code, "say why" in unexplained.text) == (400, True)
    assert staff.submit(path, decision="approve", cap_tokens="nine").status_code == 400
    assert staff.submit(path, decision="approve", cap_tokens="8,000", note="enjoy").status_code == 303
    assert f"{customer_id} may use 8,000 tokens a day." in staff.page("/admin/console/caps")
    page = staff.page(path)
    assert "8,000 tokens a day" in page
    assert TEAM in page
    assert staff.submit(path, decision="decline", note="no").status_code == 409


def test_a_lane_request_comes_with_its_manifest_to_copy_and_to_download(
    platform: Any, staff: Any, customer_id: str
) -> None:
    plans = PlansFile(platform.settings.plans_file).current()
    body = AskLane(model="qwen25-14b-awq", tokens_per_day=5_000_000, reason="<b>a launch</b>")
    asked = within(
        platform, lambda session: requests.ask_lane(session, plans, customer_id, body, "ada@acme.test")
    )
    path = f"/admin/console/dedicated/{asked.id}"
    page = staff.page(path)
    assert f"customerRef: {customer_id}" in page
    assert "&lt;b&gt;a launch&lt;/b&gt;" in page
    manifest = staff.get(f"{path}/manifest.yaml")
    assert manifest.headers["content-type"].startswith("application/yaml")
    assert manifest.headers["content-disposition"].startswith('attachment; filename="dedicated-')
    assert f"customerRef: {customer_id}" in manifest.text
    assert staff.submit(path, decision="accept", note="on Monday").status_code == 303
    assert "on Monday" in staff.page(path)


def test_open_holds_are_listed(platform: Any, staff: Any) -> None:
    customer_id = make_customer(platform, "Holds")
    root = f"/admin/console/customers/{customer_id}"
    staff.submit(
        f"{root}/grant", **fields_of(staff.page(root), f"{root}/grant"), dollars="5", reason="to spend"
    )
    hold = Hold(
        hold_id=uuid7(), customer_id=customer_id, key_id="key", model="m", lane="standard-lane",
        prompt_tokens=100, completion_tokens=200, exact=True, prompt_price_nanos=750_000,
        completion_price_nanos=750_000, ttl_seconds=600,
    )  # fmt: skip
    of_ledger(platform, platform.settings.gateway_token.get_secret_value(), lambda ledger: ledger.apply(hold))
    page = staff.page(f"/admin/console/holds?customer_id={customer_id}")
    assert f"req_{hold.hold_id.hex}" in page
    assert "standard-lane" in page
    assert "$0.22" in page
    assert "held by 1 running" in staff.page(root)


def test_a_grant_to_nobody_and_pages_that_there_are_not_are_not_found(staff: Any) -> None:
    for path in (
        "/customers/nobody",
        "/caps/x",
        "/customers/NOBODY",
        f"/dedicated/lanereq_{'0' * 32}",
        "/nothing",
    ):
        answer = staff.get("/admin/console" + path)
        assert answer.status_code == 404
        assert "<h1>Not found</h1>" in answer.text
    fields = {"dollars": "1", "reason": "r", "operation_id": str(uuid7())}
    assert staff.submit("/admin/console/customers/nobody/grant", **fields).status_code == 404


def test_an_account_in_the_ledger_alone_is_no_customer(platform: Any, staff: Any) -> None:
    open_account = OpenAccount(operation_id=uuid7(), customer_id="ledger-only", cap_tokens=1, actor="t")
    token = platform.settings.ledger_token.get_secret_value()
    of_ledger(platform, token, lambda ledger: ledger.apply(open_account))
    assert staff.get("/admin/console/customers/ledger-only").status_code == 404
