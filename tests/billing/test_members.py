"""Members over HTTP: the team lets people sign in to a customer's console, and takes that back."""

from typing import Any

import httpx
import pytest

from darktree_billing.client import AdminClient
from darktree_billing.console.members import MAX_MEMBERS
from darktree_billing.schemas import CreateCustomer, InviteMember
from darktree_kit.errors import ApiError


async def _customer(admin: AdminClient) -> str:
    return (await admin.create_customer(CreateCustomer(name="Acme GmbH", plan="team"))).id


async def test_who_was_invited_is_listed_once_and_can_be_removed(
    admin: AdminClient, http: httpx.Client
) -> None:
    customer = await _customer(admin)
    made = await admin.invite_member(customer, InviteMember(email="Ada@Members.test"))
    assert (made.email, made.invited_by, made.last_sign_in_at) == ("ada@members.test", "admin", None)
    assert await admin.invite_member(customer, InviteMember(email="ada@members.test")) == made
    path = f"/admin/customers/{customer}/members"
    assert [member["id"] for member in http.get(path).json()["data"]] == [made.id]
    assert http.delete(f"{path}/{made.id}").json()["email"] == "ada@members.test"
    assert http.get(path).json()["data"] == []
    assert http.delete(f"{path}/{made.id}").status_code == 404


async def test_somebody_elses_member_is_not_taken_over(admin: AdminClient) -> None:
    first, second = await _customer(admin), await _customer(admin)
    await admin.invite_member(first, InviteMember(email="only@first.test"))
    with pytest.raises(ApiError) as refused:
        await admin.invite_member(second, InviteMember(email="only@first.test"))
    assert (refused.value.answer_status, refused.value.param) == (409, "email")


async def test_members_are_bounded(admin: AdminClient, http: httpx.Client) -> None:
    customer = await _customer(admin)
    for number in range(MAX_MEMBERS):
        await admin.invite_member(customer, InviteMember(email=f"m{number}@many.test"))
    refused = http.post(f"/admin/customers/{customer}/members", json={"email": "one@more.test"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "too_many_members")


@pytest.mark.parametrize(
    "body", [{}, {"email": "nobody"}, {"email": "a@b@c.test"}, {"email": "x" * 250 + "@y.test"}]
)
async def test_what_is_no_address_is_refused(
    admin: AdminClient, http: httpx.Client, body: dict[str, Any]
) -> None:
    customer = await _customer(admin)
    refused = http.post(f"/admin/customers/{customer}/members", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "email")
    assert http.get("/admin/customers/nobody/members").status_code == 404
