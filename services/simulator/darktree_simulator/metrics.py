"""vLLM's metrics, under vLLM's names and labels, for what the simulator has: tokens, requests, waiting, times."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FINISHED_REASONS = ("stop", "length", "abort", "error")

# The upper bounds that vLLM uses.
SECONDS = (
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    40.0,
    50.0,
    60.0,
    120.0,
    240.0,
    480.0,
)
FIRST_TOKEN_SECONDS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
)
TOKEN_SECONDS = (
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000)


class EngineMetrics:
    """The counters of one lane. Tokens are counted when they are generated, prompts with their first token."""

    def __init__(self, model: str) -> None:
        self._registry = CollectorRegistry()
        self._labels = {"engine": "0", "model_name": model}
        self.prompt_tokens = self._counter("vllm:prompt_tokens", "Number of prefill tokens processed.")
        self.generation_tokens = self._counter(
            "vllm:generation_tokens", "Number of generation tokens processed."
        )
        self.running = self._gauge(
            "vllm:num_requests_running", "Number of requests in model execution batches."
        )
        self.waiting = self._gauge("vllm:num_requests_waiting", "Number of requests waiting to be processed.")
        self.cache_usage = self._gauge(
            "vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage."
        )
        self.first_token_seconds = self._histogram(
            "vllm:time_to_first_token_seconds", "Time to first token in seconds.", FIRST_TOKEN_SECONDS
        )
        self.token_seconds = self._histogram(
            "vllm:inter_token_latency_seconds", "Inter-token latency in seconds.", TOKEN_SECONDS
        )
        self.request_seconds = self._histogram(
            "vllm:e2e_request_latency_seconds", "End to end request latency in seconds.", SECONDS
        )
        self.queue_seconds = self._histogram(
            "vllm:request_queue_time_seconds", "Time spent waiting by a request.", SECONDS
        )
        self.request_prompt_tokens = self._histogram(
            "vllm:request_prompt_tokens", "Number of prefill tokens processed.", TOKENS
        )
        self.request_generation_tokens = self._histogram(
            "vllm:request_generation_tokens", "Number of generation tokens processed.", TOKENS
        )
        names = [*self._labels, "finished_reason"]
        success = Counter(
            "vllm:request_success",
            "Count of successfully processed requests.",
            names,
            registry=self._registry,
        )
        self.finished = {
            reason: success.labels(**self._labels, finished_reason=reason) for reason in FINISHED_REASONS
        }

    def exposition(self) -> bytes:
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, list(self._labels), registry=self._registry).labels(**self._labels)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, list(self._labels), registry=self._registry).labels(**self._labels)

    def _histogram(self, name: str, text: str, bounds: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, list(self._labels), buckets=bounds, registry=self._registry).labels(
            **self._labels
        )
