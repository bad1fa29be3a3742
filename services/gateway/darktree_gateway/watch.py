"""Listening for a client that leaves, while its request is served."""

import asyncio
from collections.abc import Callable
from types import TracebackType

from starlette.types import Receive

from darktree_gateway.errors import EngineError

WhenLeft = Callable[[Callable[[], None]], Callable[[], object]]


class ClientLeft(Exception):
    """The client closed its connection before its answer was complete."""


class Watch:
    """Ends what runs inside it when the client leaves (ClientLeft), or when `stop` is called (EngineError).

    The server never fails a send, so leaving is only heard by listening: where the server tells of it (kit's `wire`),
    without a task that waits. Works as asyncio.timeout does.
    """

    def __init__(self, receive: Receive, when_left: WhenLeft | None = None) -> None:
        self._receive = receive
        self._when_left = when_left
        self._reason: Exception | None = None
        self._over = False

    def __enter__(self) -> "Watch":
        task = asyncio.current_task()
        assert task is not None
        self._main = task
        self._listen_no_more: Callable[[], object]
        if self._when_left is not None:
            self._listen_no_more = self._when_left(self._left)
        else:
            self._listen_no_more = asyncio.create_task(self._listen()).cancel
        return self

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left()

    def _left(self) -> None:
        self._end(ClientLeft())

    def stop(self) -> None:
        """The request has run too long."""
        self._end(EngineError("The request ran longer than a request may."))

    def _end(self, reason: Exception) -> None:
        if self._reason is None and not self._over:
            self._reason = reason
            self._main.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        self._listen_no_more()
        main = self._main
        # Both lead back here: only the garbage collector, whose pauses everybody feels, would find what is left.
        del self._listen_no_more, self._main
        if self._reason is not None and main.uncancel() <= 0 and kind is asyncio.CancelledError:
            raise self._reason from None
