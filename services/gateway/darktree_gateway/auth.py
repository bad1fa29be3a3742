"""Whose key a request carries: told by billing, and believed for a few seconds.

A malformed key is refused by its checksum without asking anybody. A good answer is kept for at most
`key_seconds`, so that a revocation reaches every gateway within ten; an unknown key is asked again after
`unknown_key_seconds`. Without a fresh answer nobody is let in: fail closed. A key in use is asked about again before
its answer is too old, so that none of its requests waits.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from math import inf

from darktree_billing.client import key_digest, key_id_of
from darktree_billing.errors import AccountFrozen
from darktree_billing.schemas import VerifiedKey
from darktree_gateway.errors import MeteringUnavailable
from darktree_gateway.limits import Limits, limits_of
from darktree_kit.clock import Clock, Monotonic, monotonic, utc_now
from darktree_kit.errors import ApiError, Forbidden, Unauthorized

MAX_CACHED_KEYS = 10_000
ASK_AGAIN_AFTER = 0.6  # of a good answer's life, if the key is used then
MAX_KEY_LENGTH = 256

Verify = Callable[[str, str], Awaitable[VerifiedKey | None]]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """A customer, and which of their keys."""

    customer_id: str
    key_id: str
    limits: Limits | None = None


@dataclass(slots=True)
class _Answer:
    caller: Caller | None
    until: float  # monotonic seconds
    frozen: bool = False
    ask_again_at: float = inf


class Authenticator:
    """Knows callers by their keys, asking `verify(key_id, key_sha256)` for those it has not seen lately."""

    def __init__(
        self,
        verify: Verify,
        *,
        key_seconds: float,
        unknown_key_seconds: float,
        max_keys: int = MAX_CACHED_KEYS,
        now: Monotonic = monotonic,
        clock: Clock = utc_now,
    ) -> None:
        self._verify = verify
        self._key_seconds = key_seconds
        self._unknown_key_seconds = unknown_key_seconds
        self._max_keys = max_keys
        self._now = now
        self._clock = clock
        self._answers: dict[str, _Answer] = {}
        self._asking: dict[str, asyncio.Task[_Answer]] = {}

    async def identify(self, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        """Return who calls.

        Raises Unauthorized; Forbidden when the customer is frozen, or `X-Customer-Id` names another one;
        MeteringUnavailable when billing does not say.
        """
        authorization = customer = None
        for name, value in headers:
            if name == b"authorization":
                authorization = value
            elif name == b"x-customer-id":
                customer = value
        caller = await self._caller(_key(authorization))
        if customer is not None and customer.decode("latin-1").strip() != caller.customer_id:
            raise Forbidden(
                "X-Customer-Id is not the customer of this API key.",
                param="X-Customer-Id",
                code="customer_mismatch",
            )
        return caller

    async def _caller(self, key: str) -> Caller:
        digest = key_digest(key)
        answer = self._answers.get(digest)
        now = self._now()
        if answer is None or answer.until <= now:
            key_id = key_id_of(key)
            if key_id is None:
                raise _incorrect_key()
            answer = await self._ask(key_id, digest)
        elif answer.ask_again_at <= now and answer.caller is not None:
            answer.ask_again_at = inf  # whatever comes of it: once
            self._look_up_soon(answer.caller.key_id, digest)
        if answer.frozen:
            raise Forbidden(
                "This account is frozen: a payment is disputed, or the platform's team froze it. Your keys work again "
                "when that is settled.",
                code=AccountFrozen.code,
            )
        if answer.caller is None:
            raise _incorrect_key()
        return answer.caller

    async def _ask(self, key_id: str, digest: str) -> _Answer:
        try:
            # One caller leaving does not end it for the others.
            return await asyncio.shield(self._look_up_soon(key_id, digest))
        except ApiError as error:
            raise MeteringUnavailable from error

    def _look_up_soon(self, key_id: str, digest: str) -> asyncio.Task[_Answer]:
        task = self._asking.get(digest)
        if task is None:
            task = self._asking[digest] = asyncio.create_task(self._look_up(key_id, digest))
            task.add_done_callback(partial(self._looked_up, digest))
        return task

    def _looked_up(self, digest: str, task: asyncio.Task[_Answer]) -> None:
        self._asking.pop(digest, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("billing did not say whose key it is", extra={"error": str(error)[:200]})

    async def _look_up(self, key_id: str, digest: str) -> _Answer:
        asked = self._now()
        try:
            key = await self._verify(key_id, digest)
        except ApiError as error:
            if error.answer_code != AccountFrozen.code:
                raise
            return self._kept(digest, _Answer(None, asked + self._unknown_key_seconds, frozen=True))
        if key is None:
            answer = _Answer(None, asked + self._unknown_key_seconds)
        else:
            seconds = self._key_seconds
            if key.expires_at is not None:
                seconds = min(seconds, (key.expires_at - self._clock()).total_seconds())
            caller = Caller(key.customer_id, key.key_id, limits_of(key))
            answer = _Answer(caller, asked + seconds, ask_again_at=asked + ASK_AGAIN_AFTER * seconds)
        return self._kept(digest, answer)

    def _kept(self, digest: str, answer: _Answer) -> _Answer:
        self._answers.pop(digest, None)
        while len(self._answers) >= self._max_keys:
            self._answers.pop(next(iter(self._answers)))  # the one asked longest ago
        self._answers[digest] = answer
        return answer


def _key(authorization: bytes | None) -> str:
    if authorization is None:
        raise Unauthorized(
            "You didn't provide an API key. Provide it in an Authorization header using Bearer auth: "
            "Authorization: Bearer YOUR_KEY."
        )
    scheme, _, key = authorization.decode("latin-1").partition(" ")
    if scheme.lower() != "bearer" or len(key) > MAX_KEY_LENGTH:
        raise _incorrect_key()
    return key.strip()


def _incorrect_key() -> Unauthorized:
    return Unauthorized("Incorrect API key provided. It is malformed, unknown, revoked or expired.")
