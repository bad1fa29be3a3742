"""Answers of `/v1/completions`."""

from __future__ import annotations

from typing import Any

import orjson

from darktree_simulator import tokenizer
from darktree_simulator.answers import FINGERPRINT, Answer, Envelope, shown
from darktree_simulator.logprobs import completion_logprobs
from darktree_simulator.sequences import Sequence


class CompletionAnswer(Answer):
    """`echo` puts the prompt before the text; with `only_echo` (max_tokens 0) nothing but the prompt is shown."""

    kind = "text_completion"
    details = b""

    def __init__(self, envelope: Envelope, echo: bool = False, only_echo: bool = False) -> None:
        super().__init__(envelope)
        self._echo = echo
        self._only_echo = only_echo
        self._choices_per_prompt = len(envelope.sequences) // len(envelope.prompts)

    def whole(self) -> bytes:
        return orjson.dumps(
            {
                "id": self.envelope.answer_id,
                "object": "text_completion",
                "created": self.envelope.created,
                "model": self.envelope.model,
                "choices": [self._whole_choice(sequence) for sequence in self.envelope.sequences],
                "service_tier": None,
                "system_fingerprint": FINGERPRINT,
                "usage": self.usage(),
                "kv_transfer_params": None,
                "ec_transfer_params": None,
                "metrics": None,
            }
        )

    def _choice(self, sequence: Sequence, start: int, end: int, ending: bytes) -> bytes:
        text = "" if self._only_echo else shown(sequence, start, end)
        echoed: list[int] = []
        if self._echo and start == 0:
            echoed = self._prompt(sequence)
            text = tokenizer.decode(echoed, skip_special_tokens=True) + text
        logprobs = self._logprobs(sequence, start, end)
        stop_reason = None if ending == b"null" else sequence.stop_reason
        return (
            b'{"index":%d,"text":%s,"logprobs":%s,"finish_reason":%s,"stop_reason":%s,"prompt_token_ids":%s,'
            b'"token_ids":null}'
            % (
                sequence.index,
                orjson.dumps(text),
                b"null" if logprobs is None else orjson.dumps(logprobs),
                ending,
                orjson.dumps(stop_reason),
                orjson.dumps(echoed or None),
            )
        )

    def _whole_choice(self, sequence: Sequence) -> dict[str, Any]:
        text = "" if self._only_echo else sequence.text
        if self._echo:
            text = tokenizer.decode(self._prompt(sequence), skip_special_tokens=True) + text
        return {
            "index": sequence.index,
            "text": text,
            "logprobs": self._logprobs(sequence, 0, sequence.length),
            "finish_reason": sequence.finish_reason,
            "stop_reason": sequence.stop_reason,
            "token_ids": None,
            "prompt_logprobs": None,
            "prompt_token_ids": None,
            "routed_experts": None,
        }

    def _prompt(self, sequence: Sequence) -> list[int]:
        return self.envelope.prompts[sequence.index // self._choices_per_prompt]

    def _logprobs(self, sequence: Sequence, start: int, end: int) -> dict[str, Any] | None:
        if self.envelope.logprobs is None:
            return None
        prompt = self._prompt(sequence) if self._echo else []
        echoed = prompt if start == 0 else []
        ids = [] if self._only_echo else sequence.token_ids(start, end)
        offset = start + len(prompt) - len(echoed)
        return completion_logprobs(ids, self.envelope.logprobs, offset, echoed)
