"""A customer reads every entry of their own, and nobody else's; each can be proven."""

from typing import Any

import pytest
from pydantic import SecretStr

from darktree_kit.notes import make_signer, write_signer
from darktree_ledger.receipts import Receipt, check_receipt
from darktree_ledger.sealer import make_app
from darktree_ledger.settings import SealerSettings

MODEL = "qwen25-14b-awq"
USES = 3


@pytest.fixture(scope="module")
def verifier(platform: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A sealer beside the platform, and its key."""
    signer = make_signer("darktree.dev/ledger/test")
    key_file = tmp_path_factory.mktemp("sealer") / "key"
    write_signer(signer, key_file)
    settings = SealerSettings(
        database_url=SecretStr(platform.database.url_as("darktree_sealer")),
        key_files=[key_file],
        seal_seconds=0.05,
        checkpoint_seconds=0.05,
    )
    platform.stack.enter_context(platform.serving(make_app(settings)))
    return signer.verifier


@pytest.fixture
def user(platform: Any) -> Any:
    """A customer with a grant and some charges, the last of them small."""
    customer = platform.customer(dollars="10")
    for tokens in range(USES, 0, -1):
        assert customer.chat(max_tokens=tokens).status_code == 200
    return customer


def ledger(customer: Any, **params: Any) -> dict[str, Any]:
    answer = customer.client.get("/v1/ledger", params=params)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_every_entry_is_listed_newest_first_and_adds_up_to_the_balance(user: Any) -> None:
    entries = ledger(user)["data"]
    assert [entry["kind"] for entry in entries] == ["usage"] * USES + ["grant"]
    assert [entry["seq"] for entry in entries] == list(range(len(entries), 0, -1))
    spent = sum(entry["amount_nanos"] for entry in entries if entry["kind"] == "usage")
    granted = entries[-1]["amount_nanos"]
    assert granted - spent == entries[0]["balance_after_nanos"] == user.credits()["balance_nanos"]
    assert (entries[-1]["amount"], entries[-1]["reason"]) == ("10.00", "for the test")
    charges = user.usage()
    for name in (
        "entry_id",
        "request_id",
        "prompt_tokens",
        "completion_tokens",
        "key_id",
        "usage_day",
        "amount",
    ):
        assert [entry[name] for entry in entries[:USES]] == [charge[name] for charge in charges]


def test_pages_follow_each_other_without_a_gap(user: Any) -> None:
    whole, seen, cursor = ledger(user)["data"], [], None
    while True:
        page = ledger(user, limit=2, **({"after": cursor} if cursor else {}))
        assert len(page["data"]) <= 2
        seen += page["data"]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == whole


def test_a_filter_leaves_what_it_says(platform: Any, user: Any) -> None:
    other_key = platform.client_of(user.id)
    assert other_key.chat(max_tokens=1).status_code == 200
    assert [entry["kind"] for entry in ledger(user, kind="grant")["data"]] == ["grant"]
    (by_key,) = ledger(user, key_id=other_key.usage()[0]["key_id"])["data"]
    assert by_key["seq"] == USES + 2
    today = user.credits()["day"]["date"]
    assert len(ledger(user, day=today, model=MODEL)["data"]) == USES + 1
    assert ledger(user, day="2020-01-01")["data"] == []
    assert ledger(user, model="another")["data"] == []


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"kind": "gift"}, "kind"),
        ({"day": "yesterday"}, "day"),
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"after": "first"}, "after"),
        ({"model": ""}, "model"),
    ],
)
def test_a_wrong_filter_is_named(user: Any, params: dict[str, Any], param: str) -> None:
    refused = user.client.get("/v1/ledger", params=params)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def test_an_entry_leads_to_what_proves_it(user: Any, verifier: Any, eventually: Any) -> None:
    for entry in ledger(user)["data"]:
        assert entry["proof"] == f"/v1/ledger/entries/{entry['seq']}"
        shown = eventually(
            lambda path=entry["proof"]: (found := user.client.get(path).json())["receipt"] and found,
            "a receipt",
        )
        receipt = Receipt.model_validate(shown.pop("receipt"))
        assert shown == entry
        check_receipt(receipt, [verifier])
        assert (receipt.entry.seq, receipt.entry.hash) == (entry["seq"], entry["hash"])


def test_nobody_reads_another_customers_entries(platform: Any, user: Any) -> None:
    stranger = platform.customer(dollars="1")
    assert [entry["kind"] for entry in ledger(stranger)["data"]] == ["grant"]
    assert stranger.client.get("/v1/ledger/entries/2").status_code == 404
    assert user.client.get("/v1/ledger/entries/2").status_code == 200
    assert user.client.get("/v1/ledger/entries/0").status_code == 400
