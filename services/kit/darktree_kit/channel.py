"""One kept connection to one service: for whoever sends one request at a time, at a fraction of a whole client's cost.

There is no pool, no redirect, no cookie and no compression: a request is one write, and httptools, which is what our
servers read with, reads the answer. A kept connection that was closed before anything of an answer came is replaced
once and the request sent again; so only what may be repeated goes through here, as everything with its caller's id may.
"""

import asyncio
import re
import ssl
from collections.abc import Mapping
from typing import cast
from urllib.parse import urlsplit

import httptools

from darktree_kit import logs
from darktree_kit.errors import Unreachable
from darktree_kit.http import CALL_TIMEOUT_SECONDS, CONNECT_TIMEOUT_SECONDS, refusal

MAX_ANSWER_BYTES = 16 * 1024 * 1024  # with its headers
NO_HEADERS: Mapping[str, str] = {}
_VISIBLE = re.compile(r"[!-~]+")


class Channel:
    """A caller of one internal service, whose calls take turns. Errors are InternalClient's."""

    def __init__(
        self, base_url: str, token: str, *, service: str, timeout: float = CALL_TIMEOUT_SECONDS
    ) -> None:
        url = urlsplit(base_url.rstrip("/"))
        plain = _VISIBLE.fullmatch(url.netloc + url.path)
        if url.scheme not in {"http", "https"} or not url.hostname or url.username is not None or not plain:
            raise ValueError(f"{service}'s URL must be http:// or https:// with a host and no user")
        if not (token.isascii() and token.isprintable()):
            raise ValueError(f"{service}'s token must be of printable ASCII")
        self.service = service
        self._host = url.hostname
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._tls = _tls() if url.scheme == "https" else None
        self._prefix = url.path
        authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        self._headers = f"Host: {url.netloc}\r\n{authorization}"
        self._timeout = timeout
        self._turn = asyncio.Lock()
        self._connection: _Connection | None = None

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def post(self, path: str, body: bytes, headers: Mapping[str, str] = NO_HEADERS) -> bytes:
        """Send JSON and return the answer's body. `headers` are of plain ASCII, and ours."""
        request = self._head(path, len(body), headers) + body
        try:
            async with asyncio.timeout(self._timeout), self._turn:
                status, content = await self._exchange(request)
        except (OSError, TimeoutError, httptools.HttpParserError) as error:
            raise Unreachable(f"{self.service} did not answer: {type(error).__name__}") from error
        if status >= 400:
            raise refusal(self.service, status, content)
        return content

    def _head(self, path: str, length: int, headers: Mapping[str, str]) -> bytes:
        request_id = logs.request_id.get()
        named = "" if request_id is None else f"X-Request-Id: {request_id}\r\n"
        if headers:
            named += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return (
            f"POST {self._prefix}{path} HTTP/1.1\r\n{self._headers}{named}"
            f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        ).encode("ascii")

    async def _exchange(self, request: bytes) -> tuple[int, bytes]:
        kept = self._connection
        if kept is not None and kept.open:
            try:
                return await kept.exchange(request)
            except OSError:
                if kept.heard:
                    raise
        self._connection = await self._connect()
        return await self._connection.exchange(request)

    async def _connect(self) -> "_Connection":
        async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
            _, connection = await asyncio.get_running_loop().create_connection(
                _Connection, self._host, self._port, ssl=self._tls
            )
        return connection


class _Connection(asyncio.Protocol):
    """One connection, and the answer that is awaited on it. Its last four methods are httptools' to call."""

    def __init__(self) -> None:
        self.open = False
        self.heard = False  # whether anything of the present answer has come
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._parts: list[bytes] = []
        self._size_bytes = 0

    async def exchange(self, request: bytes) -> tuple[int, bytes]:
        """Return the answer's status and body. Left before the answer is whole, the connection is closed."""
        self.heard = False
        self._size_bytes = 0
        self._answer = asyncio.get_running_loop().create_future()
        try:
            self._transport.write(request)
            return await self._answer
        except BaseException:
            self.close()
            raise
        finally:
            self._answer = None

    def close(self) -> None:
        self.open = False
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.open = True

    def data_received(self, data: bytes) -> None:
        self.heard = True
        self._size_bytes += len(data)
        try:
            if self._size_bytes > MAX_ANSWER_BYTES:
                raise OSError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
            self._parser.feed_data(data)
        except (OSError, httptools.HttpParserError) as error:
            self._fail(error)

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(error if isinstance(error, OSError) else ConnectionResetError("closed before the answer"))

    def _fail(self, error: Exception) -> None:
        self.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    def on_message_begin(self) -> None:
        self._parts = []
        if self._answer is None or self._answer.done():
            raise ConnectionAbortedError("an answer that nobody asked for")

    def on_body(self, part: bytes) -> None:
        self._parts.append(part)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return  # the answer itself is still to come
        if not self._parser.should_keep_alive():
            self.close()
        assert self._answer is not None
        if not self._answer.done():
            self._answer.set_result((status, b"".join(self._parts)))


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
