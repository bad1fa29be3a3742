"""An engine's chat as a response: its events while it grows, or the whole of it at the end.

What ends the response is withheld until it is charged, as for a chat. An error in the middle of a stream is told by
OpenAI's `error` event and then `response.failed`.
"""

from typing import Any

import orjson

from darktree_gateway.errors import EngineError, of_engine
from darktree_gateway.metering import Meter
from darktree_gateway.requests import Ask
from darktree_gateway.responses.output import Event, Output
from darktree_gateway.streaming import DONE, Events, tokens_of
from darktree_kit.clock import utc_now
from darktree_kit.errors import ApiError
from darktree_kit.ids import uuid7

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponseAnswer:
    """Turns the events of a chat into those of a response, and meters them on the way."""

    def __init__(self, ask: Ask, meter: Meter) -> None:
        assert ask.said is not None
        self._ask = ask
        self._meter = meter
        self._events = Events()
        self._output = Output()
        self._finish_reason: str | None = None
        self._usage: dict[str, Any] | None = None
        self._withheld: list[bytes] = []
        self._told = 0
        self._response: dict[str, Any] = {
            "id": f"resp_{uuid7().hex}",
            "object": "response",
            "created_at": int(utc_now().timestamp()),
            "model": ask.model,
        } | ask.said
        self.done = False
        self.error: ApiError | None = None

    @property
    def complete(self) -> bool:
        """Whether the engine finished and said what it used."""
        finished = self._finish_reason is not None and self._usage is not None
        return self.done and self.error is None and finished

    def feed(self, data: bytes) -> bytes:
        """Return what may be sent now of these bytes. Afterwards `error` or `done` may be set."""
        out: list[bytes] = []
        try:
            for event in self._events.feed(data):
                if self.done or self.error is not None:
                    break
                self._take(event, out)
        except EngineError as error:
            self.error = error
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            self.error = EngineError()
            self.error.__cause__ = error
        return b"".join(out) if self._ask.stream else b""

    def ending(self) -> bytes:
        """Return the last events of a complete stream; of one that is not streamed, the whole response."""
        assert self._finish_reason is not None
        reason = _INCOMPLETE.get(self._finish_reason)
        status = "completed" if reason is None else "incomplete"
        closing = [self._written(event) for event in self._output.close(status)]
        response = self._as_it_is(status, details={"reason": reason} if reason else None)
        if not self._ask.stream:
            return orjson.dumps(response)
        last = self._written({"type": f"response.{status}", "response": response})
        return b"".join([*self._withheld, *closing, last])

    def failing(self, error: ApiError) -> bytes:
        """Return the last events of a stream that fails."""
        told = {"code": error.answer_code, "message": error.message, "param": error.param}
        failure = {"code": "server_error", "message": error.message}
        response = self._as_it_is("failed", failure=failure)
        return self._written({"type": "error"} | told) + self._written(
            {"type": "response.failed", "response": response}
        )

    def _take(self, event: bytes, out: list[bytes]) -> None:
        if event == DONE:
            self.done = True
            return
        if not event.startswith(b"data: "):
            if event.startswith(b":"):
                out.append(event + b"\n\n")
            elif event.strip():
                raise EngineError
            return
        chunk = orjson.loads(event[6:])
        if "error" in chunk:
            self.error = of_engine(200, chunk, model=self._ask.model, prompt_param=self._ask.prompt_param)
            return
        used = tokens_of(chunk.get("usage"))
        if used is not None:
            self._meter.see_only(*used)
        if not chunk["choices"]:
            self._usage = chunk["usage"] if used is not None else self._usage
            return
        if not self._told:
            opened = self._as_it_is("in_progress")
            for kind in ("response.created", "response.in_progress"):
                out.append(self._written({"type": kind, "response": opened}))
        (choice,) = chunk["choices"]
        finished = choice.get("finish_reason")
        self._finish_reason = finished or self._finish_reason
        events = self._output.take(choice.get("delta") or {}, choice.get("logprobs"))
        (self._withheld if self._finish_reason else out).extend(map(self._written, events))

    def _written(self, event: Event) -> bytes:
        numbered = event | {"sequence_number": self._told}
        self._told += 1
        return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(numbered))

    def _as_it_is(
        self, status: str, *, details: dict[str, str] | None = None, failure: dict[str, str] | None = None
    ) -> dict[str, Any]:
        ended = status in {"completed", "incomplete", "failed"}
        return self._response | {
            "status": status,
            "output": list(self._output.items),
            "error": failure,
            "incomplete_details": details,
            "usage": self._told_usage() if ended else None,
        }

    def _told_usage(self) -> dict[str, Any] | None:
        """Return the usage as a response has it: what is charged, to the token."""
        meter = self._meter
        if not meter.seen:
            return None
        usage = self._usage or {}
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
        return {
            "input_tokens": meter.prompt_tokens,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": meter.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": reasoning},
            "total_tokens": meter.prompt_tokens + meter.completion_tokens,
        }
