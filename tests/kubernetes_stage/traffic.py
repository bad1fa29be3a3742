"""Load from OpenAI's own client, as a customer's program makes it: what it repeats by itself is no failure."""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx2
from openai import DefaultHttpxClient, OpenAI

PAUSE_SECONDS = 0.05


@dataclass
class Load:
    """Some threads that ask and ask, every second one for a stream; what they were told, until they are stopped."""

    base_url: str
    host: str
    key: str
    model: str
    threads: int = 3
    max_tokens: int = 30
    answered: dict[str, int] = field(default_factory=dict)  # tokens by request id
    failures: list[str] = field(default_factory=list)
    attempts: Counter[int] = field(default_factory=Counter)  # HTTP answers by status; 0: none came
    _stop: threading.Event = field(default_factory=threading.Event)
    _workers: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> "Load":
        self._workers = [threading.Thread(target=self._work, args=(place,)) for place in range(self.threads)]
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for worker in self._workers:
            worker.join()

    def wait_for(self, more: int, seconds: float = 120) -> None:
        """Return once so many more requests were answered."""
        wanted, deadline = len(self.answered) + more, time.monotonic() + seconds
        while len(self.answered) < wanted:
            assert time.monotonic() < deadline, (
                f"{len(self.answered)} of {wanted} answers; {self.failures[-3:]}"
            )
            time.sleep(0.1)

    def _work(self, place: int) -> None:
        transport = _Counting(self.attempts)
        http = DefaultHttpxClient(transport=transport, trust_env=False)
        client = OpenAI(
            base_url=self.base_url,
            api_key=self.key,
            default_headers={"Host": self.host},
            http_client=http,
            timeout=60,
        )
        number = place
        while not self._stop.is_set():
            number += 1
            try:
                request_id, tokens = self._stream(client) if number % 2 else self._ask(client)
                self.answered[request_id] = tokens
            except Exception as error:
                self.failures.append(f"{type(error).__name__}: {error}"[:300])
            self._stop.wait(PAUSE_SECONDS)

    def _question(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "messages": [{"role": "user", "content": "Tell me of trees."}],
        }

    def _ask(self, client: OpenAI) -> tuple[str, int]:
        raw = client.chat.completions.with_raw_response.create(**self._question())
        usage = raw.parse().usage
        assert usage is not None
        return raw.headers["x-request-id"], usage.total_tokens

    def _stream(self, client: OpenAI) -> tuple[str, int]:
        tokens, ended = 0, False
        options: Any = {"include_usage": True}
        with client.chat.completions.with_streaming_response.create(
            **self._question(), stream=True, stream_options=options
        ) as raw:
            for chunk in raw.parse():
                ended = ended or any(choice.finish_reason for choice in chunk.choices)
                tokens = chunk.usage.total_tokens if chunk.usage else tokens
            assert ended, "the stream ended before its answer did"
            assert tokens, "the stream ended without its usage"
            return raw.headers["x-request-id"], tokens


class _Counting(httpx2.HTTPTransport):
    """Counts every attempt by what it was answered with, those that the client repeats by itself too."""

    def __init__(self, attempts: Counter[int]) -> None:
        super().__init__()
        self._attempts = attempts

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            answer = super().handle_request(request)
        except httpx2.HTTPError:
            self._attempts[0] += 1
            raise
        self._attempts[answer.status_code] += 1
        return answer
