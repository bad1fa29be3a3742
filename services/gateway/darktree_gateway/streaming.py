"""An engine's stream of events, passed on as bytes: nothing is decoded that need not be.

The engine puts usage on every event; the client gets it only where it asked for it, else once, beside the last finish
reason. From the event that ends the last answer on everything is withheld until the charge is durable.

Finding usage in the bytes is sound: inside a JSON string every quote is escaped, so `,"usage":` outside of one is a
member's name, and when what follows it is one value and then the event's last brace, it is the event's own member.
Whatever looks different is decoded in full.
"""

import re
from typing import Any

import orjson

from darktree_gateway.errors import EngineError, decoded, of_engine
from darktree_gateway.metering import Meter
from darktree_gateway.requests import Ask
from darktree_kit.errors import ApiError

MAX_EVENT_BYTES = 16 * 1024 * 1024
DONE = b"data: [DONE]"
_PREFIX = b"data: "
_USAGE = b',"usage":'
_FINISHES = b'"finish_reason":"'
_INDEX = re.compile(rb'"choices":\[\{"index":(\d+)[,}]')


class Events:
    """Cuts a stream of bytes, however it arrives, into events (without the blank line that ends each)."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the events that these bytes complete. Raises EngineError when one grows too large."""
        if self._rest:
            data = self._rest + data
        events = data.split(b"\n\n")
        self._rest = events.pop()
        if len(self._rest) > MAX_EVENT_BYTES:
            raise EngineError
        return events


def tokens_of(usage: Any) -> tuple[int, int] | None:
    """Return (prompt tokens, completion tokens) of a usage object, or None when it is none."""
    if type(usage) is not dict:
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens") or 0
    if type(prompt) is not int or type(completion) is not int or prompt < 0 or completion < 0:
        return None
    return prompt, completion


class Relay:
    """Turns the engine's events into the client's, and meters them on the way."""

    def __init__(self, ask: Ask, meter: Meter) -> None:
        self._ask = ask
        self._meter = meter
        self._answers = ask.answers
        self._single = ask.answers == 1
        self._finished = 0
        self._events = Events()
        self._withheld: list[bytes] = []
        self._final: bytes | None = None
        self._closing: dict[str, Any] = {}
        self.done = False
        self.error: ApiError | None = None

    @property
    def complete(self) -> bool:
        """Whether the engine finished every answer and said what it used."""
        return (
            self.done and self.error is None and self._final is not None and self._finished >= self._answers
        )

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
        except (ValueError, TypeError, KeyError, AttributeError):
            self.error = EngineError()
        if not out:
            return b""
        out.append(b"")
        return b"\n\n".join(out)

    def ending(self) -> bytes:
        """Return the last bytes of a complete stream: what was withheld, its usage, and the end."""
        events = self._withheld
        if self._ask.include_usage:
            assert self._final is not None
            events.append(self._final)
        else:
            events[0] = events[0][:-1] + b"," + orjson.dumps(self._closing)[1:]
        return b"\n\n".join([*events, DONE, b""])

    def _take(self, event: bytes, out: list[bytes]) -> None:
        if not event.startswith(_PREFIX):
            self._take_other(event, out)
            return
        if event == DONE:
            self.done = True
            return
        head, found, tail = event.rpartition(_USAGE)
        used = _tokens_at_the_end(tail) if found else None
        if used is None or head.endswith(b'"choices":[]'):
            self._take_decoded(event, out)
            return
        if self._single:
            self._meter.see_only(*used)
        else:
            place = _INDEX.search(head)
            if place is None:
                self._take_decoded(event, out)
                return
            self._meter.see(int(place[1]), *used)
        self._pass_on(event if self._ask.continuous_usage else head + b"}", head.find(_FINISHES) >= 0, out)

    def _take_decoded(self, event: bytes, out: list[bytes]) -> None:
        try:
            chunk = orjson.loads(event[len(_PREFIX) :])
        except ValueError as error:
            raise EngineError from error
        if type(chunk) is not dict or "error" in chunk:
            self.error = of_engine(200, chunk, model=self._ask.model, prompt_param=self._ask.prompt_param)
            return
        usage, choices = chunk.get("usage"), chunk.get("choices")
        used = tokens_of(usage)
        if not choices:
            if used is not None:
                self._meter.see_only(*used)
                self._final = event
                self._closing = {"usage": usage}
                if chunk.get("system_fingerprint"):
                    self._closing["system_fingerprint"] = chunk["system_fingerprint"]
            return
        finishes = False
        for choice in choices:
            finishes = finishes or bool(choice.get("finish_reason"))
            if used is not None and not self._single:
                self._meter.see(int(choice["index"]), *used)
        if used is not None and self._single:
            self._meter.see_only(*used)
        if "usage" in chunk and not self._ask.continuous_usage:
            del chunk["usage"]
            event = _PREFIX + orjson.dumps(chunk)
        self._pass_on(event, finishes, out)

    def _take_other(self, event: bytes, out: list[bytes]) -> None:
        if event.startswith(b":"):
            out.append(event)  # a comment: it keeps the connection alive
        elif event.strip():
            self.error = of_engine(
                500, decoded(event), model=self._ask.model, prompt_param=self._ask.prompt_param
            )

    def _pass_on(self, event: bytes, finishes: bool, out: list[bytes]) -> None:
        self._finished += finishes
        if self._finished >= self._answers:
            self._withheld.append(event)
        else:
            out.append(event)


def _tokens_at_the_end(tail: bytes) -> tuple[int, int] | None:
    if not tail.endswith(b"}}"):
        return None
    try:
        return tokens_of(orjson.loads(tail[:-1]))
    except ValueError:
        return None


def error_event(error: ApiError) -> bytes:
    """Return an error in the middle of a stream, as OpenAI's clients understand it."""
    return _PREFIX + orjson.dumps(error.body()) + b"\n\n"
