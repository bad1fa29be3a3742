"""How one service calls another: JSON over HTTP with a service token, and errors that keep their type.

aiohttp, not httpx: measured at a tenth of the CPU a call (docs/decisions/0003-http-clients.md).
"""

from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson

from darktree_kit import logs, tracing
from darktree_kit.errors import ApiError, Unreachable

CALL_TIMEOUT_SECONDS = 10.0
CONNECT_TIMEOUT_SECONDS = 2.0
MAX_CONNECTIONS = 64
# A stream may take as long as it likes, but not fall silent.
_STREAM_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_SECONDS, sock_read=60)


class InternalClient:
    """A caller of one internal service.

    Raises the service's own refusal as an ApiError with its status, type, code and param; Unreachable when no
    complete answer came (the call may or may not have taken effect: repeat it with the same id).
    """

    def __init__(
        self, base_url: str, token: str, *, service: str, timeout: float = CALL_TIMEOUT_SECONDS
    ) -> None:
        self.service = service
        self._base_url = base_url.rstrip("/")
        self._headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {token}"} if token else {}
        )
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_TIMEOUT_SECONDS)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def call(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        body: bytes | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """Send one request and return the answer's body. `json` is encoded; `body` is sent as it is."""
        data = body if body is not None else (orjson.dumps(json) if json is not None else None)
        try:
            async with self._request(method, path, data=data, params=params, headers=headers) as answer:
                content = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(f"{self.service} did not answer: {type(error).__name__}") from error
        if answer.status >= 400:
            raise refusal(self.service, answer.status, content)
        return content

    async def stream(self, path: str, *, params: Mapping[str, str] | None = None) -> AsyncIterator[bytes]:
        """Get an answer of any length in pieces. Raises as `call` does; Unreachable also when it ends early."""
        try:
            async with self._request("GET", path, params=params, timeout=_STREAM_TIMEOUT) as answer:
                if answer.status >= 400:
                    raise refusal(self.service, answer.status, await answer.read())
                async for piece in answer.content.iter_any():
                    yield piece
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(f"{self.service} did not answer: {type(error).__name__}") from error

    async def call_json(self, method: str, path: str, **options: Any) -> Any:
        """As `call`, and return the decoded answer."""
        content = await self.call(method, path, **options)
        return orjson.loads(content) if content else None

    def _request(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **options: Any
    ) -> "aiohttp.client._RequestContextManager":
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=MAX_CONNECTIONS)
            # Cookies, compression and what a browser would send cost as much as the call itself.
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=self._timeout,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            )
        sent_headers = self._headers | dict(headers or {})
        if (request_id := logs.request_id.get()) is not None:
            sent_headers["X-Request-Id"] = request_id
        sent_headers |= tracing.headers()
        return self._session.request(method, self._base_url + path, headers=sent_headers, **options)


def refusal(service: str, status: int, content: bytes) -> ApiError:
    """Return the error that an answer of this status says; Unreachable when none of our services wrote it."""
    try:
        error = orjson.loads(content)["error"]
        return ApiError(
            str(error["message"]),
            status=status,
            type=error.get("type"),
            code=error.get("code"),
            param=error.get("param"),
        )
    except (ValueError, KeyError, TypeError):
        return Unreachable(f"{service} answered {status} without an error that says why")
