"""An answer on its way: generated turn by turn, broken where a fault says so, ended when the client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from http import HTTPStatus

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from darktree_simulator.answers import DONE, Answer
from darktree_simulator.engine import Engine, Step
from darktree_simulator.errors import EngineError, engine_failed
from darktree_simulator.faults import Faults


class LiveResponse(Response):
    """Generates while it is sent. A client that disconnects cancels what is not generated yet."""

    def __init__(self, engine: Engine, answer: Answer, stream: bool, faults: Faults) -> None:
        self.background = None
        self._engine = engine
        self._answer = answer
        self._stream = stream
        self._faults = faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (leaving, sending):
                task.cancel()
            with suppress(asyncio.CancelledError):
                await leaving
        # A broken connection is the fault's doing: the server closes a connection whose answer has no end.
        with suppress(asyncio.CancelledError, _ConnectionCutError):
            await sending

    async def _send(self, send: Send) -> None:
        if self._faults.latency_seconds:
            await asyncio.sleep(self._faults.latency_seconds)
        if self._stream:
            await self._send_stream(send)
        else:
            await self._send_whole(send)

    async def _send_whole(self, send: Send) -> None:
        try:
            async for _ in self._turns():
                pass
        except EngineError as error:
            await _send_json(send, error.status, orjson.dumps(error.body))
            return
        except _ConnectionCutError:
            # Without a head the server would answer 500 in its own words; a body that never comes is a broken answer.
            await send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": _head(length=1)})
            raise
        await _send_json(send, HTTPStatus.OK, self._answer.whole())

    async def _send_stream(self, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": headers})
        # As in vLLM, the first event is sent with the first token.
        opening = self._answer.opening()
        try:
            async for steps in self._turns():
                await _send_part(send, opening + b"".join(self._answer.chunks(step) for step in steps))
                opening = b""
            await _send_end(send, self._answer.closing())
        except EngineError as error:
            await _send_end(send, b"data: %s\n\n%s" % (orjson.dumps(error.body), DONE))

    async def _turns(self) -> AsyncIterator[list[Step]]:
        """The turns of the engine, up to the token after which a fault strikes."""
        faults = self._faults
        limits = (faults.stall_after_tokens, faults.cut_after_tokens, faults.error_after_tokens)
        strikes_at = min((limit for limit in limits if limit is not None), default=None)
        if strikes_at == 0:
            await self._strike()
        async with aclosing(self._engine.generate(self._answer.envelope.sequences, strikes_at)) as turns:
            async for steps in turns:
                yield steps
                if strikes_at is not None and max(step.end for step in steps) >= strikes_at:
                    await self._strike()

    async def _strike(self) -> None:
        if self._faults.stall_after_tokens is not None:
            await asyncio.Event().wait()
        if self._faults.cut_after_tokens is not None:
            raise _ConnectionCutError
        raise engine_failed()


class _ConnectionCutError(Exception):
    pass


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_json(send: Send, status: int, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": _head(len(body))})
    await _send_end(send, body)


def _head(length: int) -> list[tuple[bytes, bytes]]:
    return [(b"content-type", b"application/json"), (b"content-length", b"%d" % length)]


async def _send_part(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _send_end(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": False})
