"""Every limit of the stand-in holds."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from stripe import InvalidRequestError, StripeClient

from darktree_stripe_simulator import account as accounts
from darktree_stripe_simulator.account import MAX_OBJECTS, Account
from darktree_stripe_simulator.api import MAX_IDEMPOTENCY_KEY_CHARACTERS
from darktree_stripe_simulator.client import ControlError, StripeStandIn
from darktree_stripe_simulator.disputes import MAX_EVIDENCE_CHARACTERS
from darktree_stripe_simulator.errors import Refusal
from darktree_stripe_simulator.faults import MAX_FAULTS
from darktree_stripe_simulator.files import MAX_FILE_BYTES
from darktree_stripe_simulator.sessions import MAX_SESSION_SECONDS, MIN_SESSION_SECONDS
from darktree_stripe_simulator.settings import Settings

MakeSession = Callable[..., str]


def test_an_account_is_full_at_some_time() -> None:
    account = Account(Settings(), clock=lambda: 0.0)
    account.objects = {str(number): {} for number in range(MAX_OBJECTS)}
    with pytest.raises(Refusal, match=str(MAX_OBJECTS)):
        account.add("ch", "charge", {})


def test_ids_have_their_length() -> None:
    assert len(accounts.new_id("ch")) == len("ch_") + accounts.ID_LENGTH


def test_there_are_so_many_faults_and_no_more(stripe: StripeStandIn) -> None:
    for _ in range(MAX_FAULTS):
        stripe.fault(path="nowhere")
    with pytest.raises(ControlError, match=str(MAX_FAULTS)):
        stripe.fault(path="nowhere")


def test_an_idempotency_key_has_a_length(stripe: StripeStandIn, api: StripeClient) -> None:
    for length, is_taken in (
        (MAX_IDEMPOTENCY_KEY_CHARACTERS, True),
        (MAX_IDEMPOTENCY_KEY_CHARACTERS + 1, False),
    ):
        key = {"Authorization": f"Bearer {stripe.key}", "Idempotency-Key": "k" * length}
        answer = httpx.post(f"{stripe.url}/v1/products", data={"name": "x"}, headers=key)
        assert (answer.status_code == 200) is is_taken


def test_a_file_is_no_larger_than_five_megabytes(stripe: StripeStandIn) -> None:
    for size, status in ((MAX_FILE_BYTES, 200), (MAX_FILE_BYTES + 1, 400), (7 * 2**20, 413)):
        answer = httpx.post(
            f"{stripe.url}/v1/files",
            headers={"Authorization": f"Bearer {stripe.key}"},
            data={"purpose": "dispute_evidence"},
            files={"file": ("e.txt", b"x" * size, "text/plain")},
        )
        assert answer.status_code == status


def test_a_session_lives_half_an_hour_to_a_day(stripe: StripeStandIn, make_session: MakeSession) -> None:
    now = stripe.advance(0)
    make_session(expires_at=now + MIN_SESSION_SECONDS + 60)
    make_session(expires_at=now + MAX_SESSION_SECONDS - 60)
    for seconds in (MIN_SESSION_SECONDS - 60, MAX_SESSION_SECONDS + 60):
        with pytest.raises(InvalidRequestError, match="expires_at"):
            make_session(expires_at=now + seconds)


def test_evidence_is_no_longer_than_stripe_reads(
    stripe: StripeStandIn, api: StripeClient, make_session: MakeSession
) -> None:
    stripe.pay(make_session())
    dispute = stripe.dispute(api.v1.charges.list().data[0].id)
    texts = (
        "access_activity_log",
        "cancellation_rebuttal",
        "product_description",
        "refund_policy_disclosure",
    )
    more = (
        "refund_refusal_explanation",
        "uncategorized_text",
        "billing_address",
        "duplicate_charge_explanation",
    )
    evidence: Any = dict.fromkeys((*texts, *more), "x" * 20000)
    assert sum(map(len, evidence.values())) > MAX_EVIDENCE_CHARACTERS
    with pytest.raises(InvalidRequestError, match="150,000"):
        api.v1.disputes.update(dispute["id"], {"evidence": evidence})
    too_long: Any = {"uncategorized_text": "x" * 20_001}
    with pytest.raises(InvalidRequestError):
        api.v1.disputes.update(dispute["id"], {"evidence": too_long})
