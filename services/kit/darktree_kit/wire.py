"""What uvicorn leaves unbounded: how large the head of a request is, and how long a request takes to come.

Without these a few connections that send a byte now and then, or headers without an end, hold a server's memory and
descriptors for ever. What an application is told beside ASGI's own is in its scope's state: `when_left`, and `say` of
the request's cycle.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from darktree_kit.cycle import Cycle

MAX_HEAD_BYTES = 64 * 1024  # beyond the read in which the head began
READ_SECONDS = 60.0  # for a request, head and body, to arrive whole
LOOK_SECONDS = 10.0
LAST_CALL_SECONDS = 1
_CLOSE = b"connection: close\r\ncontent-length: 0\r\n\r\n"


class BoundedProtocol(HttpToolsProtocol):
    """Answers 431 to a head without an end, 408 to one that does not come, and closes on a body that does not come."""

    max_head_bytes = MAX_HEAD_BYTES
    read_seconds = READ_SECONDS
    look_seconds = LOOK_SECONDS

    _in_head = False
    _head_bytes = 0
    _since: float | None = None  # when the request began that is arriving; a new connection owes one
    _next_look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._told_of_leaving: list[Callable[[], None]] = []
        self._since = self.loop.time()
        self._next_look = self.loop.call_later(self.look_seconds, self._look)

    def when_left(self, tell: Callable[[], None]) -> Callable[[], None]:
        """Have it told when the client closes the connection; returns what ends that.

        As waiting for `http.disconnect` does, without a task that waits.
        """
        self.flow.resume_reading()  # what is not read is not heard
        self._told_of_leaving.append(tell)
        if self.transport.is_closing():
            self.loop.call_soon(tell)
        return partial(self._told_of_leaving.remove, tell)

    def connection_lost(self, exc: Exception | None) -> None:
        for tell in list(self._told_of_leaving):
            tell()
        if self._next_look is not None:
            self._next_look.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        went_on = self._in_head
        super().data_received(data)
        if went_on and self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self.max_head_bytes:
                self._refuse(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        self._since = self.loop.time()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        # What follows the last chunk is no header (RFC 9110, 6.5.1): nobody is to be let in by it.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:
            cycle: Any = self.cycle
            cycle.__class__ = Cycle  # uvicorn makes its own by name; nothing has run of it yet
            state: dict[str, Any] = self.scope["state"]
            state["when_left"], state["say"] = self.when_left, cycle.say

    def on_message_complete(self) -> None:
        self._since = None
        super().on_message_complete()

    def shutdown(self) -> None:
        """The server listens no more. What is idle is closed; not a connection that owes its first request, nor one
        whose answer runs and may have begun without `Connection: close`: a request that comes at once is served.
        """
        if self.cycle is not None and self.cycle.response_complete:
            self.transport.close()
            return
        self.timeout_keep_alive = LAST_CALL_SECONDS
        if self.cycle is None:
            self.loop.call_later(LAST_CALL_SECONDS, self._close_unless_asked)

    def _close_unless_asked(self) -> None:
        if self.cycle is None:
            self.transport.close()

    def _look(self) -> None:
        """Close the connection when its request is late, unless it is this server that does not read on."""
        if self.transport.is_closing():
            return
        now = self.loop.time()
        cycle: Any = self.cycle
        waits_for_us = self.flow.read_paused or (
            self._in_head and cycle is not None and not cycle.response_complete
        )
        if self._since is not None and waits_for_us:
            self._since = now
        if self._since is not None and now - self._since > self.read_seconds:
            self._refuse(b"408 Request Timeout")
            return
        self._next_look = self.loop.call_later(self.look_seconds, self._look)

    def _refuse(self, status: bytes) -> None:
        if (
            self._in_head
            and not self.transport.is_closing()
            and (self.cycle is None or self.cycle.response_complete)
        ):
            self.transport.write(b"HTTP/1.1 " + status + b"\r\n" + _CLOSE)
        self._in_head = False
        self.transport.close()
