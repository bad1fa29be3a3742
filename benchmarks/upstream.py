"""A lane that costs almost nothing: canned answers in vLLM's shapes, from one asyncio protocol.

It stands behind the gateway and, in the same run, alone, so that what is measured is the gateway. A plain request gets
648 bytes; a streamed one 16 chunks with usage on each, in one write.

    python benchmarks/upstream.py PORT
"""

import asyncio
import json
import sys
from typing import cast

import httptools
import uvloop

PROMPT_TOKENS = 24
COMPLETION_TOKENS = 16
CONTEXT_LENGTH = 32_768
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


def _events() -> bytes:
    chunks = [_chunk({"role": "assistant", "content": ""}, None, 0)]
    chunks += [_chunk({"content": f"{word} "}, None, place) for place, word in enumerate(_WORDS[:15], 1)]
    chunks.append(_chunk({"content": _WORDS[-1]}, "length", COMPLETION_TOKENS))
    last = _chunk({}, None, COMPLETION_TOKENS) | {"choices": []}
    lines = [json.dumps(chunk, separators=(",", ":")) for chunk in [*chunks, last]]
    return "".join(f"data: {line}\n\n" for line in lines).encode() + b"data: [DONE]\n\n"


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


STREAM = _answer(_events(), "text/event-stream; charset=utf-8")
PLAIN = _answer(_plain())
HEALTH = _answer(b"{}")
TOKENS = _answer(json.dumps({"count": PROMPT_TOKENS, "max_model_len": CONTEXT_LENGTH, "tokens": []}).encode())


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
        elif self.path.startswith(b"/v1/"):
            self.transport.write(STREAM if b'"stream":true' in self.body else PLAIN)
        else:
            self.transport.write(HEALTH)


async def serve(port: int) -> None:
    """Answer on a port until killed."""
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
