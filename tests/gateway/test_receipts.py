"""A charge comes with what proves it: from the answer's header to a signed checkpoint, checked with no help of ours."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from darktree_kit.notes import make_signer, write_signer
from darktree_ledger.checkpoints import open_checkpoint, trusted_keys
from darktree_ledger.merkle import verify_consistency
from darktree_ledger.receipts import LogKeyView, Receipt, check_receipt
from darktree_ledger.sealer import make_app
from darktree_ledger.settings import SealerSettings

ORIGIN = "darktree.dev/ledger/test"


@pytest.fixture(scope="module")
def verifier(platform: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A sealer beside the platform; and its key, as a customer has it from the operator's own page."""
    key_file: Path = tmp_path_factory.mktemp("sealer") / "key"
    signer = make_signer(ORIGIN)
    write_signer(signer, key_file)
    settings = SealerSettings(
        database_url=SecretStr(platform.database.url_as("darktree_sealer")),
        key_files=[key_file],
        seal_seconds=0.05,
        checkpoint_seconds=0.05,
    )
    platform.stack.enter_context(platform.serving(make_app(settings)))
    return signer.verifier


def charged(customer: Any) -> dict[str, Any]:
    answer = customer.chat(max_tokens=5)
    assert answer.status_code == 200, answer.text
    shown = customer.client.get(f"/v1/usage/{answer.headers['x-request-id']}")
    assert shown.status_code == 200, shown.text
    found: dict[str, Any] = shown.json()
    return found


def receipt_of(customer: Any, charge: dict[str, Any], eventually: Callable[..., Any]) -> Receipt:
    path = f"/v1/usage/{charge['request_id']}"
    return Receipt.model_validate(
        eventually(lambda: customer.client.get(path).json()["receipt"], "a receipt")
    )


def test_a_charge_gets_a_receipt_that_holds_without_asking_anybody(
    customer: Any, verifier: Any, eventually: Callable[..., Any]
) -> None:
    charge = charged(customer)
    receipt = receipt_of(customer, charge, eventually)
    checkpoint = check_receipt(receipt, [verifier])
    assert checkpoint.origin == ORIGIN
    assert receipt.keys == [str(verifier)]
    entry = receipt.entry
    assert (str(entry.entry_id), entry.customer_id) == (charge["entry_id"], customer.id)
    for field in ("amount_nanos", "prompt_tokens", "completion_tokens", "model", "key_id"):
        assert getattr(entry, field) == charge[field]


def test_a_customer_follows_the_log_from_one_checkpoint_to_the_next(
    customer: Any, verifier: Any, eventually: Callable[..., Any]
) -> None:
    receipt_of(customer, charged(customer), eventually)
    earlier = open_checkpoint(customer.client.get("/v1/ledger/checkpoint").text, [verifier])
    receipt_of(customer, charged(customer), eventually)
    later = open_checkpoint(customer.client.get("/v1/ledger/checkpoint").text, [verifier])
    again = customer.client.get("/v1/ledger/checkpoint", params={"size": earlier.size})
    assert open_checkpoint(again.text, [verifier]) == earlier
    sizes = {"first": earlier.size, "second": later.size}
    proof = customer.client.get("/v1/ledger/consistency", params=sizes).json()["proof"]
    hashes = [bytes.fromhex(value) for value in proof]
    assert earlier.size < later.size
    assert verify_consistency(earlier.size, later.size, hashes, earlier.root, later.root)
    keys = [LogKeyView.model_validate(key) for key in customer.client.get("/v1/ledger/keys").json()]
    assert trusted_keys([verifier], keys) == [verifier]


def test_what_was_not_signed_yet_is_not_found(customer: Any, verifier: Any) -> None:
    for path in ("checkpoint?size=999999", "consistency?first=1&second=999999"):
        answer = customer.client.get(f"/v1/ledger/{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    answer = customer.client.get("/v1/ledger/consistency?first=2&second=1")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "first")


def test_the_log_is_shown_to_customers_only_and_with_their_limits(
    platform: Any, customer: Any, verifier: Any
) -> None:
    for path in ("checkpoint", "consistency?first=1&second=1", "keys"):
        assert httpx.get(f"{platform.gateway_url}/v1/ledger/{path}").status_code == 401
    assert "x-ratelimit-limit-tokens" in customer.client.get("/v1/ledger/keys").headers


def test_nobody_gets_the_receipt_of_another_customers_charge(
    platform: Any, customer: Any, verifier: Any
) -> None:
    charge = charged(customer)
    stranger = platform.customer()
    assert stranger.client.get(f"/v1/usage/{charge['request_id']}").status_code == 404


def test_until_a_checkpoint_covers_it_a_charge_has_no_receipt(
    running_platform: Callable[[Path], Any], tmp_path: Path
) -> None:
    with running_platform(tmp_path) as platform:
        customer = platform.customer()
        assert charged(customer)["receipt"] is None
        assert customer.client.get("/v1/ledger/checkpoint").status_code == 404
        assert customer.client.get("/v1/ledger/keys").json() == []
