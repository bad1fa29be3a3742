"""Listening for a client that leaves, while its request is served."""

import asyncio
from types import TracebackType

from starlette.types import Receive

from darktree_gateway.errors import EngineError


class ClientLeft(Exception):
    """The client closed its connection before its answer was complete."""


class Watch:
    """Ends what runs inside it when the client leaves (ClientLeft), or when `stop` is called (EngineError).

    The server never fails a send, so leaving is only heard by listening. Works as asyncio.timeout does.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._reason: Exception | None = None

    def __enter__(self) -> "Watch":
        task = asyncio.current_task()
        assert task is not None
        self._main = task
        self._listener = asyncio.create_task(self._listen())
        return self

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._end(ClientLeft())

    def stop(self) -> None:
        """The request has run too long."""
        self._end(EngineError("The request ran longer than a request may."))

    def _end(self, reason: Exception) -> None:
        if self._reason is None:
            self._reason = reason
            self._main.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.cancel()
        if self._reason is not None and self._main.uncancel() <= 0 and kind is asyncio.CancelledError:
            raise self._reason from None
