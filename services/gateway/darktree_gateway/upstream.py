"""The gateway's only client of engines, balanced over a lane's engines.

A request is sent to another engine once: when the first could not be reached, broke the connection before a byte of an
answer, or said that it cannot take it now (503, 429). After that it is the customer's to repeat. Whatever engines
generate twice, only one answer is delivered and charged.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson

from darktree_gateway import metrics
from darktree_gateway.affinity import conversation_of
from darktree_gateway.balancing import Balancer, Engine, Patience
from darktree_gateway.connections import Answer, Connections, CutOff, NotConnected, Stale
from darktree_gateway.errors import EngineError, LaneUnavailable, decoded, of_engine
from darktree_gateway.lanes import Lane
from darktree_gateway.requests import Ask
from darktree_kit import tracing
from darktree_kit.clock import monotonic
from darktree_kit.errors import ApiError

COUNT_TIMEOUT_SECONDS = 30.0
EXPOSITION_TIMEOUT_SECONDS = 5.0
PROBE_TIMEOUT_SECONDS = 2.0
MAX_EXPOSITION_BYTES = 8 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
MAX_COUNT_BYTES = 32 * 1024 * 1024
MAX_COUNTS_AT_ONCE = 8

_log = logging.getLogger(__name__)
_PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
}
_COUNTED_FIELDS = (
    "messages",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
)


class Generation:
    """One answer that an engine is giving."""

    __slots__ = ("_answer", "_broke", "_ended", "engine")

    def __init__(self, engine: Engine, answer: Answer, ended: Callable[[Engine, bool], None]) -> None:
        self.engine = engine
        self._answer = answer
        self._ended = ended
        self._broke = False

    async def read(self) -> bytes:
        """Return what has arrived, at least one byte; nothing at the end. Raises EngineError when it breaks off."""
        try:
            return await self._answer.read()
        except OSError as error:
            self._broke = True
            raise EngineError from error

    async def pass_on(self, taker: Callable[[bytes], bool]) -> None:
        """Call `taker` with what arrives, as it arrives, until it returns False or nothing more comes; then `read`."""
        await self._answer.pass_on(taker)

    def close(self) -> None:
        """Let go of the engine. Unless the answer has ended, this closes the connection: the engine stops."""
        self.engine.outstanding -= 1
        self._ended(self.engine, self._broke)
        self._answer.close()


class Upstream:
    """Asks engines."""

    def __init__(self, *, idle_seconds: float, token: str = "", patience: Patience | None = None) -> None:
        self.balancer = Balancer(patience or Patience())
        self._headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {token}"} if token else {}
        )
        self._connections = Connections(idle_seconds=idle_seconds)

    async def close(self) -> None:
        await self._connections.close()

    async def generate(self, lane: Lane, ask: Ask, body: bytes, request_id: str) -> Generation:
        """Send a request to one of the lane's engines; return once it has begun to answer.

        Raises LaneUnavailable, or the engine's refusal in OpenAI's shape, or EngineError.
        """
        headers = self._headers | {"X-Request-Id": request_id} | tracing.headers()
        path = _PATHS[ask.endpoint]
        unreachable: str | None = None
        reason = ""
        conversation = conversation_of(ask) if len(lane.endpoints) > 1 else None
        for last_try in (False, True):
            engine = self.balancer.choose(lane.endpoints, but_not=unreachable, conversation=conversation)
            if engine is None:
                break
            if last_try:
                metrics.RETRIES.labels(lane.name, reason).inc()
            engine.outstanding += 1
            try:
                answer = await self._connections.ask(engine.url + path, "POST", headers, body, fresh=last_try)
            except BaseException as error:
                engine.outstanding -= 1
                unreachable, reason = self._judge(error, lane, engine)  # raises what is not worth another try
                continue
            if answer.status == 200:
                return Generation(engine, answer, partial(self._ended, lane))
            engine.outstanding -= 1
            refusal = await _refusal(answer, ask)
            reason = f"status_{answer.status // 100}xx"
            metrics.UPSTREAM_ERRORS.labels(lane.name, reason).inc()
            if answer.status >= 500:
                self._failed(lane, engine, reason)
            else:
                self.balancer.answered(engine)
            if not isinstance(refusal, LaneUnavailable) or last_try:
                raise refusal
            unreachable = engine.url
        raise LaneUnavailable

    def _judge(self, error: BaseException, lane: Lane, engine: Engine) -> tuple[str | None, str]:
        """Return which engine to leave out of another try, and why there is one; raise when there shall be none."""
        if isinstance(error, NotConnected):
            self._failed(lane, engine, "unreachable", reached=False)
            metrics.UPSTREAM_ERRORS.labels(lane.name, "unreachable").inc()
            return engine.url, "unreachable"
        if isinstance(error, CutOff):
            if not isinstance(error, Stale):
                self._failed(lane, engine, "cut_off")
            metrics.UPSTREAM_ERRORS.labels(lane.name, "cut_off").inc()
            # The only engine may be asked again, on a new connection.
            return engine.url if len(lane.endpoints) > 1 else None, "cut_off"
        if isinstance(error, TimeoutError | OSError | ValueError):
            self._failed(lane, engine, "broken")
            metrics.UPSTREAM_ERRORS.labels(lane.name, "broken").inc()
            raise EngineError from error
        raise error

    def _ended(self, lane: Lane, engine: Engine, broke: bool) -> None:
        if broke:
            self._failed(lane, engine, "broken")
        elif engine.failures or engine.ejections:
            self.balancer.answered(engine)

    def _failed(self, lane: Lane, engine: Engine, reason: str, *, reached: bool = True) -> None:
        if self.balancer.failed(engine, lane.endpoints, monotonic(), reached=reached):
            metrics.EJECTIONS.labels(lane.name, reason).inc()
            _log.warning(
                "an engine is left alone", extra={"lane": lane.name, "engine": engine.url, "reason": reason}
            )

    async def count(self, lane: Lane, ask: Ask) -> tuple[list[int], int]:
        """Return how many tokens each prompt has, counted by an engine, and the longest context it serves.

        Raises LaneUnavailable, the engine's refusal, or EngineError.
        """
        metrics.COUNTED.inc()
        bodies = _count_bodies(ask)
        places = asyncio.Semaphore(MAX_COUNTS_AT_ONCE)

        async def counted(body: bytes) -> tuple[int, int]:
            async with places:
                return await self._count(lane, ask, body)

        counts = await asyncio.gather(*map(counted, bodies))
        return [count for count, _ in counts], min(context for _, context in counts)

    async def _count(self, lane: Lane, ask: Ask, body: bytes) -> tuple[int, int]:
        unreachable: str | None = None
        reason = ""
        for last_try in (False, True):
            engine = self.balancer.choose(lane.endpoints, but_not=unreachable)
            if engine is None:
                break
            if last_try:
                metrics.RETRIES.labels(lane.name, reason).inc()
            try:
                async with asyncio.timeout(COUNT_TIMEOUT_SECONDS):
                    answer = await self._connections.ask(
                        engine.url + "/tokenize", "POST", self._headers, body, fresh=last_try
                    )
                    if answer.status != 200:
                        raise await _refusal(answer, ask)
                    counted = orjson.loads(await _read_bounded(answer, MAX_COUNT_BYTES))
                return int(counted["count"]), int(counted.get("max_model_len") or lane.context_tokens)
            except ApiError:
                raise
            except (KeyError, TypeError) as error:
                raise EngineError from error
            except Exception as error:
                unreachable, reason = self._judge(error, lane, engine)
        raise LaneUnavailable

    async def is_there(self, url: str) -> bool:
        """Return whether an engine answers, and does not say that it cannot serve."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
                answer = await self._connections.ask(url + "/health", "GET", self._headers)
                await _read_bounded(answer, MAX_ERROR_BYTES)
        except (TimeoutError, OSError, EngineError):
            return False
        return answer.status < 500

    async def exposition(self, url: str) -> str | None:
        """Return an engine's own metrics in Prometheus' text format, or None when it does not give them."""
        content = await self._fetch(url + "/metrics")
        return None if content is None else content.decode("utf-8", "replace")

    async def describe(self, url: str) -> tuple[str, int | None]:
        """Return an engine's version and longest context, as far as it says them."""
        version = _member(await self._fetch(url + "/version"), "version")
        if not isinstance(version, str):
            return "", None
        listed = _member(await self._fetch(url + "/v1/models"), "data")
        first = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], dict) else {}
        context = first.get("max_model_len")
        return version, context if isinstance(context, int) else None

    async def _fetch(self, url: str) -> bytes | None:
        try:
            async with asyncio.timeout(EXPOSITION_TIMEOUT_SECONDS):
                answer = await self._connections.ask(url, "GET", self._headers)
                content = await _read_bounded(answer, MAX_EXPOSITION_BYTES)
        except (TimeoutError, OSError, EngineError) as error:
            _log.debug("an engine's counters could not be read", extra={"error": str(error)[:200]})
            return None
        return content if answer.status == 200 else None


def _member(content: bytes | None, name: str) -> object:
    try:
        return orjson.loads(content or b"{}").get(name)
    except (ValueError, AttributeError):
        return None


async def _read_bounded(answer: Answer, limit: int) -> bytes:
    """Return a body. Raises EngineError when it is longer than the limit."""
    content = bytearray()
    try:
        while part := await answer.read():
            content += part
            if len(content) > limit:
                raise EngineError
    finally:
        answer.close()
    return bytes(content)


def _count_bodies(ask: Ask) -> list[bytes]:
    body = ask.body
    if ask.endpoint != "chat":
        texts = [ask.prompt] if isinstance(ask.prompt, str) else ask.prompt
        extra = {name: body[name] for name in ("add_special_tokens",) if name in body}
        return [orjson.dumps({"model": ask.model, "prompt": text} | extra) for text in texts]
    sent: dict[str, Any] = {"model": ask.model} | {
        name: body[name] for name in _COUNTED_FIELDS if name in body
    }
    template = dict(body.get("chat_template_kwargs") or {})
    effort = body.get("reasoning_effort")
    if effort is not None:
        # As vLLM renders it for a chat: /tokenize does not know the field.
        template = {"reasoning_effort": effort, "enable_thinking": effort != "none"} | template
    if template:
        sent["chat_template_kwargs"] = template
    return [orjson.dumps(sent)]


async def _refusal(answer: Answer, ask: Ask) -> ApiError:
    try:
        content = await _read_bounded(answer, MAX_ERROR_BYTES)
    except (OSError, EngineError):
        content = b""
    return of_engine(answer.status, decoded(content), model=ask.model, prompt_param=ask.prompt_param)
