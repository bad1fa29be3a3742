"""One request's answer on its way out: uvicorn's cycle with fewer steps.

The head of an answer whose length is known leaves with its body, in one write; a head is looked through once instead
of header by header. A body in chunks that has begun may go on at once (`say`), without a task that wakes up for a part.
"""

from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

_CONTROLS = bytes([*range(9), *range(10, 32), 127])
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"connection"})
_NO_BODY = frozenset({204, 304})
_LAST_CHUNK = b"0\r\n\r\n"


class Cycle(RequestResponseCycle):
    """What ASGI's `send` does. Raises RuntimeError where uvicorn does: an application that breaks the protocol."""

    _head = b""  # what waits for the body

    async def send(self, message: Any) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if kind == "http.response.start" and not self.response_started:
            self._begin(message["status"], message.get("headers", ()))
        elif kind == "http.response.body" and self.response_started and not self.response_complete:
            self._go_on(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise RuntimeError(f"{kind!r} has no place here")

    def say(self, part: bytes) -> bool:
        """Write a part of a body that has begun. False, and nothing is written, where `send` has to be waited for."""
        if not self.chunked_encoding or self.response_complete or self.flow.write_paused:
            return False
        if not self.disconnected:
            self.transport.write(b"%x\r\n%b\r\n" % (len(part), part))
        return True

    def _begin(self, status: int, headers: Any) -> None:
        self.response_started = True
        self.waiting_for_100_continue = False
        lines = [STATUS_LINE[status]]
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        for name, value in (*self.default_headers, *headers):
            if name in _FRAMING and self._frames(name, value):
                continue
            lines.append(b"%b: %b\r\n" % (name, value))
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in _NO_BODY:
            self.chunked_encoding = True
            lines.append(b"transfer-encoding: chunked\r\n")
        head = b"".join(lines)
        if len(head) - len(head.translate(None, _CONTROLS)) != 2 * len(lines):
            raise RuntimeError("a header has a line's end, or another control character, inside")
        if self.chunked_encoding:
            self.transport.write(head + b"\r\n")  # its body may be long in coming
        else:
            self._head = head + b"\r\n"

    def _frames(self, name: bytes, value: bytes) -> bool:
        """Take what a header says of the body and the connection; return whether the head says it already."""
        if name == b"connection":
            said, self.keep_alive = not self.keep_alive, self.keep_alive and b"close" not in value.lower()
            return said
        self.chunked_encoding = name == b"transfer-encoding"
        if not self.chunked_encoding:
            self.expected_content_length = int(value)
        return False

    def _go_on(self, body: bytes, *, more: bool) -> None:
        head, self._head = self._head, b""
        if self.scope["method"] == "HEAD":
            self.transport.write(head)
        elif self.chunked_encoding:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            self.transport.write(chunk if more else chunk + _LAST_CHUNK)
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                raise RuntimeError("the body is longer than its Content-Length")
            if not more and self.expected_content_length:
                raise RuntimeError("the body is shorter than its Content-Length")
            self.transport.write(head + body)
        if not more:
            self.response_complete = True
            self.scope["state"].pop("say", None)  # it leads back here: garbage that only a collector finds
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()
