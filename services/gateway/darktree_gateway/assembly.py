"""A plain answer, put together from the events of a stream: the object that the engine would have answered.

Engines are always asked to stream, so that it is known at any moment what was generated. The shapes are vLLM's
(entrypoints/openai/{chat_completion,completion}/protocol.py), without the members that only its own parts use.

Nearly every event says a piece of text and what was used so far, and nothing else. Those are not decoded: the first one
matches a pattern that nothing else matches, and the next ones differ from it in their text and their numbers alone.
"""

import re
from typing import Any

import orjson

from darktree_gateway.errors import EngineError, of_engine
from darktree_gateway.metering import Meter
from darktree_gateway.requests import Ask
from darktree_gateway.streaming import DONE, Events, tokens_of
from darktree_kit.errors import ApiError

_LOGPROB_LISTS = ("content", "refusal", "tokens", "token_logprobs", "top_logprobs", "text_offset")
_DELTA_TEXTS = ("content", "refusal", "reasoning", "reasoning_content")

_DIGITS_ALIKE = bytes.maketrans(b"123456789", b"0" * 9)
# Inside a JSON string every quote has a backslash before it: a string without one ends at the next quote.
_ONLY_TEXT = (
    rb'data: \{"id":"[^"\\]*","object":"[^"\\]*","created":\d+,"model":"[^"\\]*","choices":\[\{"index":0,%b'
    rb'(?:,"(?:logprobs|finish_reason|stop_reason|token_ids|prompt_token_ids)":null)*\}\],'
    rb'"usage":\{%b(?:,"(?:prompt|completion)_tokens_details":null)*\}\}'
)
_USED = rb'"prompt_tokens":(\d+),"total_tokens":\d+,"completion_tokens":(\d+)'
_NUMBERS = re.compile(_USED)
_TEXT = rb'"([^"\\\x00-\x1f]+)"'
_ONLY_CONTENT_OF_CHAT = re.compile(_ONLY_TEXT % (rb'"delta":\{"content":' + _TEXT + rb"\}", _USED))
_ONLY_TEXT_OF_COMPLETION = re.compile(_ONLY_TEXT % (rb'"text":' + _TEXT, _USED))


class Assembly:
    """Collects the events of one answer, and meters them on the way."""

    def __init__(self, ask: Ask, meter: Meter) -> None:
        self._ask = ask
        self._meter = meter
        self._chat = ask.endpoint == "chat"
        self._single = ask.answers == 1
        self._pieces = Pieces(_ONLY_CONTENT_OF_CHAT if self._chat else _ONLY_TEXT_OF_COMPLETION)
        self._texts: list[str] | None = None  # of the only answer, once it has begun
        self._events = Events()
        self._choices: dict[int, _Choice] = {}
        self._top: dict[str, Any] = {}
        self._usage: dict[str, Any] | None = None
        self.done = False
        self.error: ApiError | None = None

    @property
    def complete(self) -> bool:
        """Whether the engine finished every answer and said what it used."""
        finished = sum(choice.finish_reason is not None for choice in self._choices.values())
        return self.done and self.error is None and self._usage is not None and finished >= self._ask.answers

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the stream; nothing of them may be sent yet. Afterwards `error` or `done` may be set."""
        try:
            self._take_all(self._events.feed(data))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self.error = EngineError()
            self.error.__cause__ = error
        except EngineError as error:
            self.error = error
        return b""

    def ending(self) -> bytes:
        """Return the whole answer, as JSON."""
        answer = {
            "id": self._top.get("id"),
            "object": "chat.completion" if self._chat else "text_completion",
            "created": self._top.get("created"),
            "model": self._top.get("model"),
            "choices": [
                choice.message(index) if self._chat else choice.text(index)
                for index, choice in sorted(self._choices.items())
            ],
            "service_tier": self._top.get("service_tier"),
            "system_fingerprint": self._top.get("system_fingerprint"),
            "usage": self._usage,
        }
        if "prompt_token_ids" in self._top:
            answer["prompt_token_ids"] = self._top["prompt_token_ids"]
        return orjson.dumps(answer)

    def _take_all(self, events: list[bytes]) -> None:
        newest = b""
        for event in events:
            if self._texts is not None and (text := self._pieces.text_of(event)) is not None:
                self._texts.append(text)
                newest = event
                continue
            if newest:
                self._meter.see_only(*self._pieces.tokens_of(newest))
                newest = b""
            self._take(event)
            if self.done or self.error is not None:
                return
        if newest:
            self._meter.see_only(*self._pieces.tokens_of(newest))

    def _take(self, event: bytes) -> None:
        if event == DONE:
            self.done = True
            return
        if not event.startswith(b"data: "):
            if event.strip() and not event.startswith(b":"):
                raise EngineError
            return
        chunk = orjson.loads(event[6:])
        if "error" in chunk:
            self.error = of_engine(200, chunk, model=self._ask.model, prompt_param=self._ask.prompt_param)
            return
        choices = chunk["choices"]
        used = tokens_of(chunk.get("usage"))
        if not choices:
            if used is not None:
                self._meter.see_only(*used)
                self._usage = chunk.pop("usage")
            self._top.update((name, value) for name, value in chunk.items() if value is not None)
            return
        if not self._top or chunk.get("prompt_token_ids"):
            self._top.update((name, value) for name, value in chunk.items() if value is not None)
        for piece in choices:
            index = piece["index"]
            self._choice(index).add(piece)
            if used is not None:
                if self._single:
                    self._meter.see_only(*used)
                else:
                    self._meter.see(index, *used)

    def _choice(self, index: int) -> "_Choice":
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _Choice(bool(self._ask.body.get("return_token_ids")))
            if self._single and index == 0:
                self._texts = choice.parts_of("content" if self._chat else "text")
        return choice


class Pieces:
    """Reads events that say a piece of text and what was used so far, and nothing else."""

    __slots__ = ("_after", "_before", "_pattern")

    def __init__(self, pattern: re.Pattern[bytes]) -> None:
        self._pattern = pattern
        self._before = b""  # what comes before the text
        self._after = b""  # and after it, every digit a nought

    def text_of(self, event: bytes) -> str | None:
        """Return the text, or None when the event may say anything else."""
        if self._before:
            if not event.startswith(self._before):
                return None
            text, _, after = event[len(self._before) :].partition(b'"')
            # `in` would raise and catch an error first, whether bytes are a number.
            if text and text.find(b"\\") < 0 and after.translate(_DIGITS_ALIKE) == self._after:
                return text.decode()
        said = self._pattern.fullmatch(event)
        if said is None:
            return None
        self._before = event[: said.start(1)]
        self._after = event[said.end(1) + 1 :].translate(_DIGITS_ALIKE)
        return said[1].decode()

    def tokens_of(self, event: bytes) -> tuple[int, int]:
        """Return (prompt tokens, completion tokens) of an event that has a text. Raises ValueError."""
        said = _NUMBERS.search(event, len(event) - len(self._after))
        if said is None:
            raise ValueError("an event's numbers are none")
        return int(said[1]), int(said[2])


class _Choice:
    """One answer as it grows."""

    __slots__ = (
        "_calls",
        "_ids",
        "_logprobs",
        "_role",
        "_stop_reason",
        "_texts",
        "_with_ids",
        "finish_reason",
    )

    def __init__(self, with_ids: bool) -> None:
        self._with_ids = with_ids  # an echo streams the prompt's ids even where a plain answer would not
        self.finish_reason: str | None = None
        self._stop_reason: int | str | None = None
        self._role = "assistant"
        self._texts: dict[str, list[str]] = {}
        self._calls: dict[int, dict[str, Any]] = {}
        self._logprobs: dict[str, list[Any]] | None = None
        self._ids: dict[str, list[int]] = {}

    def parts_of(self, name: str) -> list[str]:
        """Return the list to which this answer's pieces of a text are added."""
        return self._texts.setdefault(name, [])

    def add(self, piece: dict[str, Any]) -> None:
        delta = piece.get("delta")
        if delta:
            self._add_delta(delta)
        if text := piece.get("text"):
            self.parts_of("text").append(text)
        if logprobs := piece.get("logprobs"):
            if self._logprobs is None:
                self._logprobs = {}
            for name in _LOGPROB_LISTS:
                if logprobs.get(name) is not None:
                    self._logprobs.setdefault(name, []).extend(logprobs[name])
        for name in ("token_ids", "prompt_token_ids") if self._with_ids else ():
            if piece.get(name) is not None:
                self._ids.setdefault(name, []).extend(piece[name])
        if piece.get("finish_reason") is not None:
            self.finish_reason = piece["finish_reason"]
            self._stop_reason = piece.get("stop_reason")

    def _add_delta(self, delta: dict[str, Any]) -> None:
        for name in _DELTA_TEXTS:
            text = delta.get(name)
            if text:
                self.parts_of(name).append(text)
        if delta.get("role"):
            self._role = delta["role"]
        for piece in delta.get("tool_calls") or ():
            self._add_call(piece)

    def _add_call(self, piece: dict[str, Any]) -> None:
        call = self._calls.setdefault(
            piece["index"], {"id": None, "type": "function", "function": {"name": ""}}
        )
        for name in ("id", "type"):
            if piece.get(name):
                call[name] = piece[name]
        function = piece.get("function") or {}
        if function.get("name"):
            call["function"]["name"] += function["name"]
        call["function"].setdefault("arguments", "")
        call["function"]["arguments"] += function.get("arguments") or ""

    def _joined(self, name: str) -> str | None:
        return "".join(self._texts.get(name, ())) or None

    def message(self, index: int) -> dict[str, Any]:
        content = self._joined("content")
        if content is None and not self._calls and not self._joined("reasoning"):
            content = ""
        message: dict[str, Any] = {"role": self._role, "content": content, "refusal": self._joined("refusal")}
        for name in ("reasoning", "reasoning_content"):
            if (text := self._joined(name)) is not None:
                message[name] = text
        if self._calls:
            message["tool_calls"] = [call for _, call in sorted(self._calls.items())]
        return {"index": index, "message": message} | self._ends()

    def text(self, index: int) -> dict[str, Any]:
        return {"index": index, "text": self._joined("text") or ""} | self._ends()

    def _ends(self) -> dict[str, Any]:
        facts = {"finish_reason": self.finish_reason, "stop_reason": self._stop_reason}
        return {"logprobs": self._logprobs} | facts | self._ids
