"""Whose key it is: asked once, believed for seconds, never without an answer."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from darktree_billing.errors import AccountFrozen
from darktree_billing.key_format import make_key
from darktree_billing.schemas import VerifiedKey
from darktree_gateway.auth import Authenticator, Caller
from darktree_gateway.errors import MeteringUnavailable
from darktree_kit.errors import Forbidden, Unauthorized, Unreachable

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Billing:
    """Answers as a test says, and counts the questions. Time passes only when a test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.asked = 0
        self.known: VerifiedKey | None = VerifiedKey(key_id="k", customer_id="ann", expires_at=None)
        self.away = False
        self.frozen = False
        self.gate: asyncio.Event | None = None

    async def verify(self, key_id: str, digest: str) -> VerifiedKey | None:
        assert len(digest) == 64
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.away:
            raise Unreachable("billing did not answer")
        if self.frozen:
            raise AccountFrozen("ann")
        return self.known

    def authenticator(self) -> Authenticator:
        return Authenticator(
            self.verify,
            key_seconds=5,
            unknown_key_seconds=2,
            now=lambda: self.seconds,
            clock=lambda: NOON + timedelta(seconds=self.seconds),
        )


def headers(key: str, *more: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {key}".encode()), *more]


async def test_a_good_key_is_not_asked_about_for_three_seconds_and_not_believed_after_five() -> None:
    billing, key = Billing(), make_key().text
    authenticator = billing.authenticator()
    for second in (0.0, 1.0, 2.9):
        billing.seconds = second
        assert await authenticator.identify(headers(key)) == Caller("ann", "k")
    assert billing.asked == 1
    billing.seconds = 5.0
    billing.known = None
    with pytest.raises(Unauthorized):
        await authenticator.identify(headers(key))


async def test_a_key_in_use_is_asked_about_before_its_answer_is_too_old_and_no_request_waits() -> None:
    billing, key = Billing(), make_key().text
    authenticator = billing.authenticator()
    await authenticator.identify(headers(key))
    billing.gate, billing.seconds = asyncio.Event(), 3.0
    for _ in range(3):
        assert await authenticator.identify(headers(key)) == Caller("ann", "k")
        await asyncio.sleep(0)
    assert billing.asked == 2
    billing.gate.set()
    for _ in range(3):
        await asyncio.sleep(0)
    billing.gate, billing.seconds = asyncio.Event(), 7.9  # whoever asked now would wait for ever
    assert await authenticator.identify(headers(key)) == Caller("ann", "k")


async def test_a_revocation_that_is_heard_early_counts_at_once_and_a_failure_to_hear_changes_nothing() -> (
    None
):
    billing, key = Billing(), make_key().text
    authenticator = billing.authenticator()
    await authenticator.identify(headers(key))
    billing.away, billing.seconds = True, 3.0
    for _ in range(4):
        assert await authenticator.identify(headers(key)) == Caller("ann", "k")
        await asyncio.sleep(0)
    assert billing.asked == 2, "asked again once, not for every request"
    billing.away, billing.seconds = False, 5.0
    assert await authenticator.identify(headers(key)) == Caller("ann", "k")
    billing.known, billing.seconds = None, 8.0
    assert await authenticator.identify(headers(key)) == Caller("ann", "k")
    for _ in range(3):
        await asyncio.sleep(0)
    with pytest.raises(Unauthorized):
        await authenticator.identify(headers(key))


async def test_an_unknown_key_stays_unknown_for_two_seconds() -> None:
    billing, key = Billing(), make_key().text
    authenticator = billing.authenticator()
    known, billing.known = billing.known, None
    for _ in range(3):
        with pytest.raises(Unauthorized):
            await authenticator.identify(headers(key))
    assert billing.asked == 1
    billing.known, billing.seconds = known, 2.0
    assert await authenticator.identify(headers(key)) == Caller("ann", "k")


async def test_a_key_is_not_believed_past_its_own_end() -> None:
    billing, key = Billing(), make_key().text
    billing.known = VerifiedKey(key_id="k", customer_id="ann", expires_at=NOON + timedelta(seconds=3))
    authenticator = billing.authenticator()
    await authenticator.identify(headers(key))
    billing.seconds, billing.known = 3.0, None
    with pytest.raises(Unauthorized):
        await authenticator.identify(headers(key))


async def test_requests_with_one_key_share_one_question_and_one_leaving_does_not_end_it() -> None:
    billing, key = Billing(), make_key().text
    billing.gate = asyncio.Event()
    authenticator = billing.authenticator()
    tasks = [asyncio.create_task(authenticator.identify(headers(key))) for _ in range(10)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    billing.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[1:] == [Caller("ann", "k")] * 9
    assert billing.asked == 1


async def test_without_an_answer_nobody_is_let_in_but_a_fresh_answer_still_counts() -> None:
    billing, key = Billing(), make_key().text
    authenticator = billing.authenticator()
    await authenticator.identify(headers(key))
    billing.away, billing.seconds = True, 4.0
    assert await authenticator.identify(headers(key)) == Caller("ann", "k")
    billing.seconds = 5.0
    with pytest.raises(MeteringUnavailable):
        await authenticator.identify(headers(key))
    billing.away = False
    assert await authenticator.identify(headers(key)) == Caller("ann", "k")


async def test_a_key_with_a_wrong_checksum_is_refused_without_asking() -> None:
    billing = Billing()
    key = make_key().text
    mistyped = key[:-1] + ("a" if key[-1] != "a" else "b")
    for wrong in (mistyped, "", "x" * 10_000, key + key, "\xff"):
        with pytest.raises(Unauthorized):
            await billing.authenticator().identify([(b"authorization", b"Bearer " + wrong.encode("latin-1"))])
    with pytest.raises(Unauthorized, match="didn't provide"):
        await billing.authenticator().identify([])
    assert billing.asked == 0


async def test_the_customer_header_has_to_agree() -> None:
    billing, key = Billing(), make_key().text
    authenticator = billing.authenticator()
    assert await authenticator.identify(headers(key, (b"x-customer-id", b" ann "))) == Caller("ann", "k")
    for other in (b"bob", b"", b"\xff", b"ann,bob"):
        with pytest.raises(Forbidden) as caught:
            await authenticator.identify(headers(key, (b"x-customer-id", other)))
        assert caught.value.answer_code == "customer_mismatch"


async def test_the_cache_is_bounded() -> None:
    billing = Billing()
    authenticator = Authenticator(billing.verify, key_seconds=5, unknown_key_seconds=2, max_keys=3)
    keys = [make_key().text for _ in range(4)]
    for key in [*keys, keys[0], keys[0]]:
        await authenticator.identify(headers(key))
    assert billing.asked == 5


async def test_a_frozen_customer_is_told_so_within_seconds_and_let_in_again_within_seconds() -> None:
    billing, key = Billing(), make_key().text
    authenticator = billing.authenticator()
    assert await authenticator.identify(headers(key)) == Caller("ann", "k")
    billing.frozen, billing.seconds = True, 5.0
    for _ in range(2):
        with pytest.raises(Forbidden) as caught:
            await authenticator.identify(headers(key))
        assert (caught.value.answer_status, caught.value.answer_code) == (403, "account_frozen")
    assert billing.asked == 2
    billing.frozen, billing.seconds = False, 7.0
    assert await authenticator.identify(headers(key)) == Caller("ann", "k")
