"""Connections to engines: HTTP/1.1 for asking, and for hearing an answer while it is spoken.

A request is one write; httptools, which our servers read with too, reads what comes. There are no redirects, cookies or
compression, and no timer for each request: one look a while goes over all connections and ends what has been silent
for too long. A connection whose answer has ended is kept for the next request; one whose answer is left before its end
is closed, and so the engine stops.

    OSError
    ├── NotConnected    the engine was not reached: nothing was sent
    ├── CutOff          it closed the connection before its answer began
    │   └── Stale       but one that had been kept: it may have been about to close it
    └── Broken          its answer broke off, is no HTTP, or does not go on
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import cast
from urllib.parse import urlsplit

import httptools

CONNECT_TIMEOUT_SECONDS = 5.0
KEEP_ALIVE_SECONDS = 4.0  # less than vLLM's 5, or its closing meets our next request
LOOK_SECONDS = 1.0
MAX_CONNECTIONS = 10_000
MAX_HEAD_BYTES = 64 * 1024
MAX_ORIGINS = 4_096
READ_BUFFER_BYTES = 256 * 1024
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class NotConnected(OSError):
    """The engine was not reached: nothing was sent."""


class CutOff(OSError):
    """The engine closed the connection before its answer began."""


class Stale(CutOff):
    """It closed a connection that was kept: as any server may, which says nothing of how well it does."""


class Broken(OSError):
    """The answer broke off, is no HTTP, or does not go on."""


class Answer:
    """What one engine answers to one request."""

    __slots__ = ("_connection", "_ended", "_error", "_loop", "_parts", "_size", "_taker", "_waiter", "status")

    def __init__(self, connection: "Connection", loop: asyncio.AbstractEventLoop) -> None:
        self.status = 0  # none has come
        self._loop = loop
        self._connection: Connection | None = connection
        self._parts: list[bytes] = []
        self._size = 0
        self._ended = False
        self._error: OSError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._taker: Callable[[bytes], bool] | None = None

    async def begin(self) -> None:
        """Wait for the status. Raises CutOff or Broken."""
        while not self.status:
            if self._error is not None:
                raise self._error
            await self._wait()

    async def read(self) -> bytes:
        """Return what has come, at least one byte; nothing at the end. Raises Broken, after what came before."""
        while not self._parts:
            if self._error is not None:
                raise self._error
            if self._ended:
                return b""
            await self._wait()
        return self._all_parts()

    async def pass_on(self, taker: Callable[[bytes], bool]) -> None:
        """Call `taker` with what comes, as it comes, until it returns False or nothing more comes.

        Nobody is woken for a part, which costs more than most parts themselves. `read` goes on where this ends, and
        says why when the answer broke off. What `taker` raises is raised here.
        """
        if self._parts and not taker(self._all_parts()):
            return
        if self._ended:
            return
        self._taker = taker
        try:
            await self._wait()
        finally:
            self._taker = None

    def _all_parts(self) -> bytes:
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        if self._size > READ_BUFFER_BYTES and self._connection is not None:
            self._connection.resume()
        self._size = 0
        return data

    def close(self) -> None:
        """Let go of the engine: when the answer has not ended, it hears so at once."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def began(self, status: int) -> None:
        self.status = status
        self._wake()

    def take(self, part: bytes) -> bool:
        """Keep a part of the body, or pass it on; return whether no more should be read for now."""
        if self._taker is not None:
            self._pass_on(part, self._taker)
            return False
        self._parts.append(part)
        self._size += len(part)
        self._wake()
        return self._size > READ_BUFFER_BYTES

    def _pass_on(self, part: bytes, taker: Callable[[bytes], bool]) -> None:
        try:
            if taker(part):
                return
        except Exception as error:
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_exception(error)
        self._taker = None
        self._wake()

    def end(self, error: OSError | None = None) -> None:
        self._connection = None
        self._error = error
        self._ended = True
        self._wake()


class Connections:
    """Every connection of this process to engines."""

    def __init__(self, *, idle_seconds: float, keep_alive_seconds: float = KEEP_ALIVE_SECONDS) -> None:
        self._idle_seconds = idle_seconds
        self._keep_alive_seconds = keep_alive_seconds
        self._idle: dict[Origin, list[Connection]] = {}
        self._all: set[Connection] = set()
        self._next_look: asyncio.TimerHandle | None = None

    async def close(self) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
        for connection in list(self._all):
            connection.close()

    async def ask(
        self, url: str, method: str, headers: Mapping[str, str], body: bytes = b"", *, fresh: bool = False
    ) -> Answer:
        """Send a request and return its answer once it has begun; `fresh` takes no connection that was kept.

        Raises NotConnected, CutOff or Broken.
        """
        try:
            origin, path = _parsed(url)
        except ValueError as error:
            raise NotConnected(f"no address: {error}") from error
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        assert lines.count("\n") == len(headers), "a header's value has a line of its own"
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {origin.named}\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
        )
        connection = (None if fresh else self._kept(origin)) or await self._connect(origin)
        answer = connection.ask(head.encode("ascii") + body)
        try:
            await answer.begin()
        except BaseException:
            answer.close()
            raise
        return answer

    def _kept(self, origin: "Origin") -> "Connection | None":
        idle = self._idle.get(origin)
        now = asyncio.get_running_loop().time()
        while idle:
            connection = idle.pop()
            if now - connection.heard_at < self._keep_alive_seconds:
                return connection
            connection.close()
        return None

    async def _connect(self, origin: "Origin") -> "Connection":
        if len(self._all) >= MAX_CONNECTIONS:
            raise NotConnected(f"more than {MAX_CONNECTIONS} connections")
        loop = asyncio.get_running_loop()
        if self._next_look is None:
            self._look_later(loop)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                _, connection = await loop.create_connection(
                    partial(Connection, self, origin),
                    origin.host,
                    origin.port,
                    ssl=_tls() if origin.tls else None,
                )
        except (OSError, TimeoutError) as error:
            raise NotConnected(f"{type(error).__name__}: {error}") from error
        return connection

    def opened(self, connection: "Connection") -> None:
        self._all.add(connection)

    def keep(self, connection: "Connection") -> None:
        self._idle.setdefault(connection.origin, []).append(connection)

    def lost(self, connection: "Connection") -> None:
        self._all.discard(connection)
        idle = self._idle.get(connection.origin)
        if idle and connection in idle:
            idle.remove(connection)
        if not idle:
            self._idle.pop(connection.origin, None)

    def _look_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._next_look = loop.call_later(min(LOOK_SECONDS, self._idle_seconds / 4), self._look)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self._all):
            connection.look(now, self._idle_seconds, self._keep_alive_seconds)
        self._look_later(loop)


class Connection(asyncio.Protocol):
    """One connection, and the answer that is awaited on it. Its `on_` methods are httptools' to call."""

    def __init__(self, connections: Connections, origin: "Origin") -> None:
        self.origin = origin
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._parts: list[bytes] = []  # of the body, as the parser finds them in one read
        self.on_body = self._parts.append  # an engine sends each event as a chunk: this is called for each
        self._parser = httptools.HttpResponseParser(self)
        self._answer: Answer | None = None
        self._head_bytes = 0
        self._framed = False
        self._paused = False
        self._kept = False

    def ask(self, request: bytes) -> Answer:
        self._answer = answer = Answer(self, self._loop)
        self._head_bytes = 0
        self.heard_at = self._loop.time()
        self._transport.write(request)
        return answer

    def look(self, now: float, idle_seconds: float, keep_alive_seconds: float) -> None:
        """Close what has been silent too long. While nobody takes what came, the silence is not the engine's."""
        silent = now - self.heard_at
        if self._answer is None and silent >= keep_alive_seconds:
            self.close()
        elif self._answer is not None and silent >= idle_seconds and not self._paused:
            self._fail(Broken(f"silent for {idle_seconds:g} s"))

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self.heard_at = self._loop.time()
            self._transport.resume_reading()

    def close(self) -> None:
        self._answer = None
        self._connections.lost(self)
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        # Not before: its TLS may have taken longer than an idle connection is kept.
        self.heard_at = self._loop.time()
        self._connections.opened(self)

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        if self._answer is None or not self._answer.status:
            self._head_bytes += len(data)
            if self._answer is None or self._head_bytes > MAX_HEAD_BYTES + READ_BUFFER_BYTES:
                self._fail(Broken("more than an answer's head"))
                return
        broken: OSError | None = None
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            broken = Broken(f"{type(error).__name__}: {error}")
        self._give_parts()
        if broken is not None:
            self._fail(broken)

    def _give_parts(self) -> None:
        """Give the answer what the parser has found of its body."""
        if self._parts:
            part = b"".join(self._parts)
            self._parts.clear()
            if self._answer is not None and self._answer.take(part) and not self._paused:
                self._paused = True
                self._transport.pause_reading()

    def connection_lost(self, error: Exception | None) -> None:
        answer = self._answer
        if answer is not None and answer.status and not self._framed and error is None:
            answer.end()  # an answer without a length ends with its connection
            self._answer = None
        elif answer is not None and answer.status:
            self._fail(Broken("closed inside the answer"))
            return
        self._fail((Stale if self._kept else CutOff)("closed before the answer"))

    def _fail(self, error: OSError) -> None:
        answer = self._answer
        self.close()
        if answer is not None:
            answer.end(error)

    def on_message_begin(self) -> None:
        self._framed = False
        if self._answer is None:
            raise Broken("an answer that nobody asked for")

    def on_header(self, name: bytes, _: bytes) -> None:
        if name.lower() in _FRAMING:
            self._framed = True

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200 and self._answer is not None:  # what comes before is a hint
            self._answer.began(status)

    def on_message_complete(self) -> None:
        self._give_parts()
        answer = self._answer
        if answer is None or not answer.status:
            return
        self._answer = None
        self.resume()
        if self._parser.should_keep_alive():
            self._kept = True
            self._connections.keep(self)
        else:
            self.close()
        answer.end()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an engine listens."""

    host: str
    port: int
    tls: bool
    named: str  # as the Host header does


@lru_cache(MAX_ORIGINS)
def _parsed(url: str) -> tuple[Origin, str]:
    """Return where a URL leads, and its path. Raises ValueError."""
    parts = urlsplit(url)
    text = parts.netloc + parts.path
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
        raise ValueError("not http:// or https:// with a host and no user")
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise ValueError("not visible ASCII")
    tls = parts.scheme == "https"
    return Origin(parts.hostname, parts.port or (443 if tls else 80), tls, parts.netloc), parts.path or "/"


@lru_cache(1)
def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
