"""A lane that costs almost nothing: canned answers in vLLM's shapes, from one asyncio protocol.

It stands behind the gateway and, in the same run, alone, so that what is measured is the gateway. A plain request gets
648 bytes; a streamed one `max_tokens` events with usage on each, every event an HTTP chunk of its own as vLLM sends
them: all in one write, or one each 10 ms where the prompt asks for a steady pace.

    python benchmarks/upstream.py PORT
"""

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from typing import cast

import httptools
import uvloop

PROMPT_TOKENS = 24
COMPLETION_TOKENS = 16
CONTEXT_LENGTH = 32_768
PACE_SECONDS = 0.01
STEADY = "Speak at a steady pace."
_TEXT = "Predictable GPU inference spend , without any surprise bills , is what we sell ."
_WORDS = _TEXT.split()


def _chunk(delta: dict[str, object], finish: str | None, completion_tokens: int) -> dict[str, object]:
    return {
        "id": "chatcmpl-benchmark",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "qwen25-14b-awq",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
        "usage": _usage(completion_tokens),
    }


def _usage(completion_tokens: int) -> dict[str, int]:
    total = PROMPT_TOKENS + completion_tokens
    return {"prompt_tokens": PROMPT_TOKENS, "total_tokens": total, "completion_tokens": completion_tokens}


@cache
def _events(tokens: int) -> tuple[bytes, ...]:
    """Return the answer's events, each as an HTTP chunk; the first and the last two carry no token of their own."""
    chunks = [_chunk({"role": "assistant", "content": ""}, None, 0)]
    for place in range(1, tokens):
        chunks.append(_chunk({"content": f"{_WORDS[place % len(_WORDS)]} "}, None, place))
    chunks.append(_chunk({"content": _WORDS[-1]}, "length", tokens))
    chunks.append(_chunk({}, None, tokens) | {"choices": []})
    events = [f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n".encode() for chunk in chunks]
    return tuple(b"%x\r\n%b\r\n" % (len(event), event) for event in [*events, b"data: [DONE]\n\n"])


def _plain() -> bytes:
    message: dict[str, object] = {
        "role": "assistant",
        "content": " ".join(_WORDS),
        "refusal": None,
        "tool_calls": [],
    }
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}
    answer = {"id": "chatcmpl-benchmark", "object": "chat.completion", "created": 1_700_000_000}
    answer |= {"model": "qwen25-14b-awq", "choices": [choice], "usage": _usage(COMPLETION_TOKENS)}
    return json.dumps(answer).encode().ljust(648)


def _answer(content: bytes, kind: str = "application/json") -> bytes:
    return (
        f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(content)}\r\n\r\n".encode()
        + content
    )


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
STREAM_END = b"0\r\n\r\n"
PLAIN = _answer(_plain())
HEALTH = _answer(b"{}")
TOKENS = _answer(json.dumps({"count": PROMPT_TOKENS, "max_model_len": CONTEXT_LENGTH, "tokens": []}).encode())
_STREAMED = re.compile(rb'"stream": ?true')
_MAX_TOKENS = re.compile(rb'"max_tokens": ?(\d+)')


@cache
def _stream(tokens: int) -> bytes:
    return b"".join([STREAM_HEAD, *_events(tokens), STREAM_END])


class Engine(asyncio.Protocol):
    """Answers each request as soon as its body is there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self.parser = httptools.HttpRequestParser(self)
        self.path = b""
        self.body = b""

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.path = url
        self.body = b""

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        if self.path == b"/tokenize":
            self.transport.write(TOKENS)
        elif not self.path.startswith(b"/v1/"):
            self.transport.write(HEALTH)
        elif not _STREAMED.search(self.body):
            self.transport.write(PLAIN)
        else:
            asked = _MAX_TOKENS.search(self.body)
            tokens = int(asked[1]) if asked else COMPLETION_TOKENS
            if STEADY.encode() not in self.body:
                self.transport.write(_stream(tokens))
            else:
                self.transport.write(STREAM_HEAD)
                self.send_steadily(iter(_events(tokens)), asyncio.get_running_loop().time())

    def send_steadily(self, events: Iterator[bytes], due: float) -> None:
        if self.transport.is_closing():
            return
        event = next(events, None)
        if event is None:
            self.transport.write(STREAM_END)
        else:
            self.transport.write(event)
            due += PACE_SECONDS
            asyncio.get_running_loop().call_at(due, self.send_steadily, events, due)


async def serve(port: int) -> None:
    """Answer on a port until killed."""
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
