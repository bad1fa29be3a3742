"""How a request goes through: the key, the version, the parameters, the idempotency key, then the endpoint itself."""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from darktree_stripe_simulator import endpoints, errors, files, forms
from darktree_stripe_simulator.account import Account, Object, new_id
from darktree_stripe_simulator.endpoints import Call, Endpoint
from darktree_stripe_simulator.errors import Refusal
from darktree_stripe_simulator.expansion import shown
from darktree_stripe_simulator.faults import FaultBox
from darktree_stripe_simulator.settings import VERSION
from darktree_stripe_simulator.values import parse

MAX_BODY_BYTES = 6 * 2**20  # Stripe takes files of up to 5 MB
MAX_IDEMPOTENCY_KEY_CHARACTERS = 255
TRANSPORT = "darktree_stripe_simulator.transport"
IDEMPOTENCY_SECONDS = 24 * 3_600
MAX_ANSWERS = 20_000  # kept for their idempotency keys


@dataclass(frozen=True)
class Answer:
    status: int
    body: Object
    headers: dict[str, str]


class Api:
    """Stripe's API over one account."""

    def __init__(self, account: Account, faults: FaultBox) -> None:
        self._account = account
        self._faults = faults

    async def handle(self, request: Request) -> Response:
        """Answer one request of the API, in its errors too."""
        request_id = new_id("req", 14)
        content = await read_body(request)
        headers = {"Request-Id": request_id, "Stripe-Version": VERSION}
        lost = False
        try:
            self._authenticate(request)
            fault = self._faults.take(request.method, request.url.path)
            lost = fault is not None and fault.kind == "lost"
            if fault is not None and fault.kind == "refused":
                raise errors.injected(fault.status)
            failing = fault.status if fault is not None and fault.kind == "failed" else None
            answer = await self._answer(request, content, request_id, failing)
        except Refusal as refusal:
            answer = _refused(refusal)
        if answer.status >= 400:
            body = {"error": {**answer.body["error"], "request_log_url": f"/logs/{request_id}"}}
            answer = Answer(answer.status, body, answer.headers)
        if lost:
            return BrokenResponse()
        return Response(
            orjson.dumps(answer.body, option=orjson.OPT_INDENT_2),
            answer.status,
            headers={**headers, **answer.headers},
            media_type="application/json",
        )

    async def _answer(self, request: Request, content: bytes, request_id: str, failing: int | None) -> Answer:
        method, path = request.method, request.url.path
        if method == "POST" and path == "/v1/files" and is_multipart(request):
            return Answer(200, await files.upload(self._account, request), {})
        found = endpoints.find(method, path)
        if found is None:
            raise errors.unknown_url(method, path)
        endpoint, ids = found
        given = forms.decode(content.decode(errors="replace") if method == "POST" else request.url.query)
        key = request.headers.get("idempotency-key") if method == "POST" else None
        base_url = str(request.base_url).rstrip("/")
        if key is None:
            self._account.request = {"id": request_id, "idempotency_key": None}
            return self._execute(endpoint, given, ids, path, base_url, failing)
        if len(key) > MAX_IDEMPOTENCY_KEY_CHARACTERS:
            raise Refusal("Idempotency keys have at most 255 characters.", executed=False)
        fingerprint = hashlib.sha256(
            orjson.dumps([method, path, given], option=orjson.OPT_SORT_KEYS)
        ).hexdigest()
        known = self._known(key)
        if known is not None:
            if known["fingerprint"] != fingerprint:
                raise errors.other_parameters(key)
            replayed = {
                "Idempotent-Replayed": "true",
                "Original-Request": known["request_id"],
                "Idempotency-Key": key,
            }
            return Answer(known["status"], known["body"], replayed)
        self._account.request = {"id": request_id, "idempotency_key": key}
        answer = self._execute(endpoint, given, ids, path, base_url, failing)
        if len(self._account.answers) >= MAX_ANSWERS:
            del self._account.answers[next(iter(self._account.answers))]
        self._account.answers[key] = {
            "fingerprint": fingerprint,
            "status": answer.status,
            "body": answer.body,
            "request_id": request_id,
            "at": self._account.now(),
        }
        return Answer(answer.status, answer.body, {"Idempotency-Key": key})

    def _execute(
        self,
        endpoint: Endpoint,
        given: dict[str, Any],
        ids: tuple[str, ...],
        path: str,
        base_url: str,
        failing: int | None,
    ) -> Answer:
        """Run an endpoint. What it refused without having begun is raised, and no idempotency key keeps it."""
        try:
            parsed = parse(endpoint.takes, given)
            shown_with = parsed.expand
            made = endpoint.run(Call(self._account, parsed, ids, path, base_url))
            answer = Answer(200, shown(self._account, made, shown_with), {})
        except Refusal as refusal:
            if not refusal.executed:
                raise
            answer = _refused(refusal)
        return answer if failing is None else _refused(errors.injected(failing))

    def _known(self, key: str) -> dict[str, Any] | None:
        known = self._account.answers.get(key)
        if known is not None and known["at"] <= self._account.now() - IDEMPOTENCY_SECONDS:
            del self._account.answers[key]
            return None
        return known

    def _authenticate(self, request: Request) -> None:
        kind, _, value = request.headers.get("authorization", "").partition(" ")
        key = value.strip()
        if kind.lower() == "basic":
            try:
                key = base64.b64decode(key, validate=True).decode().partition(":")[0]
            except (binascii.Error, UnicodeDecodeError):
                key = ""
        if not key:
            raise errors.no_key()
        if key != self._account.settings.api_key:
            raise errors.wrong_key(key)
        version = request.headers.get("stripe-version", VERSION)
        if version != VERSION:
            raise errors.wrong_version(version, VERSION)


class BrokenResponse(Response):
    """A connection that breaks before the first byte of the answer."""

    def __init__(self) -> None:
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        scope[TRANSPORT].abort()
        while (await receive())["type"] != "http.disconnect":
            pass


def is_multipart(request: Request) -> bool:
    return request.headers.get("content-type", "").startswith("multipart/form-data")


async def read_body(request: Request) -> bytes:
    """Return the whole body. Raises HTTPException when it is too large."""
    if is_multipart(request):
        length = request.headers.get("content-length", "")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            raise HTTPException(413, f"A form with files says its length, at most {MAX_BODY_BYTES} bytes.")
        return b""  # read by who takes files
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_BODY_BYTES:
            raise HTTPException(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")
    return bytes(content)


def _refused(refusal: Refusal) -> Answer:
    return Answer(refusal.status, {"error": refusal.error}, {})
