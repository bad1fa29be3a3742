"""A customer of a platform, one request of theirs, and what became of it."""

import asyncio
import json
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiohttp


@dataclass(frozen=True)
class Customer:
    """Somebody with a key, a cap and a balance."""

    id: str
    key: str
    cap_tokens: int
    granted_nanos: int


@dataclass(frozen=True)
class Answer:
    """What became of one request, as its client saw it. `whole`: the very last bytes of a good answer arrived."""

    customer_id: str
    status: int = 0
    request_id: str | None = None
    code: str | None = None
    usage: tuple[int, int] | None = None
    whole: bool = False
    clamped: bool = False

    @property
    def hold_id(self) -> uuid.UUID:
        assert self.request_id is not None
        return uuid.UUID(hex=self.request_id.removeprefix("req_"))

    @property
    def tokens(self) -> int:
        assert self.usage is not None
        return sum(self.usage)


async def ask(
    session: aiohttp.ClientSession,
    base_url: str,
    customer: Customer,
    body: Mapping[str, Any],
    *,
    leave_after: float | None = None,
    leave_early: bool = False,
    on_first_bytes: Callable[[], None] = lambda: None,
) -> Answer:
    """Send one request to the end; never raises for what a server does.

    It can be left after so many seconds, or early: when its answer begins.
    """
    path = "/chat/completions" if "messages" in body else "/completions"
    headers = {"Authorization": f"Bearer {customer.key}"}
    known: dict[str, Any] = {"customer_id": customer.id}
    content = bytearray()
    try:
        async with (
            asyncio.timeout(leave_after),
            session.post(base_url + path, json=body, headers=headers) as response,
        ):
            known["status"] = response.status
            known["request_id"] = response.headers.get("x-request-id")
            known["clamped"] = "x-darktree-clamped-max-tokens" in response.headers
            async for part in response.content.iter_any():
                if not content:
                    on_first_bytes()
                content += part
                if leave_early and response.status == 200:
                    response.close()
                    return Answer(**known)
    except (aiohttp.ClientError, TimeoutError, OSError):
        return Answer(**known)
    if known["status"] != 200:
        with suppress(ValueError, KeyError):
            known["code"] = json.loads(content)["error"]["code"]
        return Answer(**known)
    events = [json.loads(content)] if not body.get("stream") else _events(bytes(content))
    errors = [event["error"]["code"] for event in events if "error" in event]
    usages = [event["usage"] for event in events if event.get("usage")]
    known["usage"] = (usages[-1]["prompt_tokens"], usages[-1]["completion_tokens"]) if usages else None
    known["whole"] = not errors and (not body.get("stream") or content.endswith(b"data: [DONE]\n\n"))
    return Answer(**known, code=errors[0] if errors else None)


def _events(content: bytes) -> list[dict[str, Any]]:
    lines = [line.removeprefix(b"data: ") for line in content.split(b"\n\n") if line.startswith(b"data: {")]
    return [json.loads(line) for line in lines]
