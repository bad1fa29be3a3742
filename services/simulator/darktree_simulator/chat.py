"""Answers of `/v1/chat/completions`."""

from __future__ import annotations

from typing import Any

import orjson

from darktree_simulator.answers import FINGERPRINT, Answer, shown
from darktree_simulator.logprobs import chat_logprobs
from darktree_simulator.sequences import Sequence

_MESSAGE_NULLS = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
_ANSWER_NULLS = dict.fromkeys(
    (
        "prompt_logprobs",
        "prompt_token_ids",
        "prompt_text",
        "kv_transfer_params",
        "ec_transfer_params",
        "metrics",
    )
)


class ChatAnswer(Answer):
    kind = "chat.completion.chunk"
    details = b',"completion_tokens_details":null'

    def opening(self) -> bytes:
        return b"".join(self._role(sequence) for sequence in self.envelope.sequences)

    def whole(self) -> bytes:
        return orjson.dumps(
            {
                "id": self.envelope.answer_id,
                "object": "chat.completion",
                "created": self.envelope.created,
                "model": self.envelope.model,
                "choices": [self._whole_choice(sequence) for sequence in self.envelope.sequences],
                "service_tier": None,
                "system_fingerprint": FINGERPRINT,
                "usage": self.usage(),
                **_ANSWER_NULLS,
            }
        )

    def _role(self, sequence: Sequence) -> bytes:
        usage = b""
        if self.envelope.continuous_usage and not self.envelope.usage_missing:
            prompt = sequence.prompt_tokens
            usage = b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":0%s}' % (
                prompt,
                prompt,
                self.details,
            )
        choice = (
            b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
        )
        return b'%s%s%s,"prompt_token_ids":null,"prompt_text":null}\n\n' % (
            self._head,
            choice % sequence.index,
            usage,
        )

    def _choice(self, sequence: Sequence, start: int, end: int, ending: bytes) -> bytes:
        stop = b"" if ending == b"null" else b',"stop_reason":%s' % orjson.dumps(sequence.stop_reason)
        logprobs = self._logprobs(sequence, start, end)
        return b'{"index":%d,"delta":{"content":%s},"logprobs":%s,"finish_reason":%s%s,"token_ids":null}' % (
            sequence.index,
            orjson.dumps(shown(sequence, start, end)),
            b"null" if logprobs is None else orjson.dumps(logprobs),
            ending,
            stop,
        )

    def _whole_choice(self, sequence: Sequence) -> dict[str, Any]:
        return {
            "index": sequence.index,
            "message": {"role": "assistant", "content": sequence.text, **_MESSAGE_NULLS},
            "logprobs": self._logprobs(sequence, 0, sequence.length),
            "finish_reason": sequence.finish_reason,
            "stop_reason": sequence.stop_reason,
            "token_ids": None,
            "routed_experts": None,
        }

    def _logprobs(self, sequence: Sequence, start: int, end: int) -> dict[str, Any] | None:
        if self.envelope.logprobs is None:
            return None
        return chat_logprobs(sequence.token_ids(start, end), self.envelope.logprobs)
