"""A stream that is silent still shows signs of life, so that nothing between here and the client takes it for dead.

A comment is a line that server-sent events say to ignore (WHATWG HTML, 9.2.6). It is only sent once the engine has
accepted the request: until then the answer may still be a refusal with a status of its own.
"""

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType

COMMENT = b": keep-alive\n\n"


class KeepAlive:
    """Sends a comment whenever nothing was sent for so long, for as long as its block lasts. 0 seconds send none."""

    def __init__(self, every_seconds: float, send: Callable[[bytes], Awaitable[None]]) -> None:
        self._every_seconds = every_seconds
        self._send = send
        self._sent = False
        self._timer: asyncio.TimerHandle | None = None
        self._comment: asyncio.Task[None] | None = None

    def sent(self) -> None:
        """Something else was sent: a comment is not needed for now."""
        self._sent = True

    def __enter__(self) -> "KeepAlive":
        if self._every_seconds:
            self._wait()
        return self

    def _wait(self) -> None:
        self._sent = False
        self._timer = asyncio.get_running_loop().call_later(self._every_seconds, self._look)

    def _look(self) -> None:
        # One that is still on its way waits for a client that does not read: more of them would not wake it.
        if not self._sent and (self._comment is None or self._comment.done()):
            self._comment = asyncio.create_task(self._say())
        self._wait()

    async def _say(self) -> None:
        await self._send(COMMENT)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._comment is not None:
            self._comment.cancel()
