"""vLLM's HTTP surface, and the faults: `GET`, `POST` and `DELETE /faults`."""

from __future__ import annotations

import asyncio
import uuid
from time import monotonic, time
from typing import Any

import orjson
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from darktree_simulator import embeddings, prompts, tokenizer
from darktree_simulator.answers import VERSION, Answer, Envelope
from darktree_simulator.bodies import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    missing,
    parse,
)
from darktree_simulator.chat import ChatAnswer
from darktree_simulator.completions import CompletionAnswer
from darktree_simulator.engine import Engine
from darktree_simulator.errors import EngineError, injected, model_not_found, starting
from darktree_simulator.faults import FaultBox
from darktree_simulator.metrics import CONTENT_TYPE
from darktree_simulator.prose import sequence
from darktree_simulator.sampling import check_request, sampling
from darktree_simulator.serving import LiveResponse
from darktree_simulator.settings import Settings

MAXIMUM_BODY_BYTES = 32 * 2**20


def make_app(settings: Settings) -> Starlette:
    """The lane as an ASGI application. Its start-up delay begins now."""
    lane = Lane(settings)
    routes = [
        Route("/v1/chat/completions", lane.chat_completions, methods=["POST"]),
        Route("/v1/completions", lane.completions, methods=["POST"]),
        Route("/v1/embeddings", lane.embeddings, methods=["POST"]),
        Route("/v1/models", lane.models),
        Route("/tokenize", lane.tokenize, methods=["POST"]),
        Route("/detokenize", lane.detokenize, methods=["POST"]),
        Route("/health", lane.health),
        Route("/ping", lane.health, methods=["GET", "POST"]),
        Route("/version", lane.version),
        Route("/metrics", lane.metrics),
        Route("/faults", lane.faults, methods=["GET", "POST", "DELETE"]),
    ]
    handlers: dict[Any, Any] = {EngineError: _engine_error, HTTPException: _http_error}
    return Starlette(routes=routes, exception_handlers=handlers)


class Lane:
    """One served model: its engine, its faults and its endpoints."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._model = settings.models[0]
        self._context_length = settings.context_length
        self._engine = Engine(self._model, settings.tokens_per_second, settings.maximum_concurrent_sequences)
        self._faults = FaultBox(settings.faults)
        self._ready_at = monotonic() + settings.startup_delay_seconds
        self._created = int(time())

    async def chat_completions(self, request: Request) -> Response:
        self._refuse_on_fault(embeds=False)
        body = parse(ChatRequest, _content_type(request), await _body(request))
        check_request(body)
        self._check_model(body.model)
        text = prompts.chat_prompt(body, self._model)
        prompt = prompts.encode_within(text, self._context_length)
        answer = ChatAnswer(self._envelope("chatcmpl", request, body, [prompt]))
        return LiveResponse(self._engine, answer, bool(body.stream), self._faults.current)

    async def completions(self, request: Request) -> Response:
        self._refuse_on_fault(embeds=False)
        body = parse(CompletionRequest, _content_type(request), await _body(request))
        check_request(body)
        self._check_model(body.model)
        ids = prompts.completion_prompts(body, self._context_length)
        envelope = self._envelope("cmpl", request, body, ids)
        answer: Answer = CompletionAnswer(envelope, bool(body.echo), bool(body.echo) and body.max_tokens == 0)
        return LiveResponse(self._engine, answer, bool(body.stream), self._faults.current)

    async def embeddings(self, request: Request) -> Response:
        self._refuse_on_fault(embeds=True)
        body = parse(embeddings.EmbeddingRequest, _content_type(request), await _body(request))
        self._check_model(body.model)
        ids = embeddings.inputs(body, self._context_length)
        if self._faults.current.latency_seconds:
            await asyncio.sleep(self._faults.current.latency_seconds)
        await self._engine.embed(ids)
        content = embeddings.answer(
            body,
            ids,
            answer_id=f"embd-{request.headers.get('x-request-id') or uuid.uuid4().hex[:16]}",
            created=int(time()),
            model=self._model,
            size=self._settings.embedding_dimensions,
        )
        if self._faults.current.usage_missing:
            content["usage"] = None
        return Response(orjson.dumps(content), media_type="application/json")

    async def models(self, _: Request) -> Response:
        self._refuse_while_starting()
        return JSONResponse(
            {"object": "list", "data": [self._model_card(name) for name in self._settings.models]}
        )

    async def tokenize(self, request: Request) -> Response:
        self._refuse_while_starting()
        body = parse(TokenizeRequest, _content_type(request), await _body(request))
        if body.prompt is None and body.messages is None:
            raise missing("prompt", "messages")
        self._check_model(body.model)
        text = body.prompt if body.messages is None else prompts.chat_prompt(body, self._model)
        ids = prompts.encode(text or "")
        texts = [tokenizer.token_text(token_id) for token_id in ids] if body.return_token_strs else None
        content = {
            "count": len(ids),
            "max_model_len": self._context_length,
            "tokens": ids,
            "token_strs": texts,
        }
        return Response(orjson.dumps(content), media_type="application/json")

    async def detokenize(self, request: Request) -> Response:
        self._refuse_while_starting()
        body = parse(DetokenizeRequest, _content_type(request), await _body(request))
        self._check_model(body.model)
        known = (token_id for token_id in body.tokens if token_id < tokenizer.VOCABULARY_SIZE)
        return JSONResponse({"prompt": tokenizer.decode(known)})

    async def health(self, _: Request) -> Response:
        self._refuse_while_starting()
        return Response()

    async def version(self, _: Request) -> Response:
        self._refuse_while_starting()
        return JSONResponse({"version": VERSION})

    async def metrics(self, _: Request) -> Response:
        self._refuse_while_starting()
        return Response(self._engine.metrics.exposition(), headers={"content-type": CONTENT_TYPE})

    async def faults(self, request: Request) -> Response:
        if request.method == "DELETE":
            return JSONResponse(self._faults.clear().model_dump())
        if request.method == "POST":
            try:
                return JSONResponse(self._faults.change(orjson.loads(await _body(request))).model_dump())
            except (orjson.JSONDecodeError, TypeError, ValidationError) as error:
                return JSONResponse({"detail": str(error)}, status_code=400)
        return JSONResponse(self._faults.current.model_dump())

    def _envelope(
        self, prefix: str, request: Request, body: ChatRequest | CompletionRequest, ids: list[list[int]]
    ) -> Envelope:
        limits = [sampling(body, len(prompt), self._context_length) for prompt in ids]
        n = limits[0].n
        options = body.stream_options
        request_id = request.headers.get("x-request-id") or body.request_id or uuid.uuid4().hex[:16]
        include_usage = options is not None and bool(options.include_usage)
        return Envelope(
            answer_id=f"{prefix}-{request_id}",
            created=int(time()),
            model=self._model,
            prompts=ids,
            sequences=[
                sequence(position * n + choice, prompt, limit)
                for position, (prompt, limit) in enumerate(zip(ids, limits, strict=True))
                for choice in range(n)
            ],
            logprobs=limits[0].logprobs,
            include_usage=include_usage,
            continuous_usage=include_usage and options is not None and bool(options.continuous_usage_stats),
            usage_missing=self._faults.current.usage_missing,
        )

    def _refuse_on_fault(self, embeds: bool) -> None:
        self._refuse_while_starting()
        if embeds != bool(self._settings.embedding_dimensions):
            raise embeddings.not_found()
        status = self._faults.take_error_status()
        if status:
            raise injected(status)

    def _refuse_while_starting(self) -> None:
        if self._faults.current.starting or monotonic() < self._ready_at:
            raise starting()

    def _check_model(self, model: str | None) -> None:
        if model is not None and model not in self._settings.models:
            raise model_not_found(model, self._settings.models)

    def _model_card(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "vllm",
            "root": name,
            "parent": None,
            "max_model_len": self._context_length,
            "permission": [_permission(self._created)],
        }


def _permission(created: int) -> dict[str, Any]:
    return {
        "id": f"modelperm-{uuid.uuid4().hex[:16]}",
        "object": "model_permission",
        "created": created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "")


async def _body(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAXIMUM_BODY_BYTES:
            raise HTTPException(413, f"The body is larger than {MAXIMUM_BODY_BYTES} bytes.")
        parts.append(part)
    return b"".join(parts)


async def _engine_error(_: Request, error: EngineError) -> Response:
    return JSONResponse(error.body, status_code=error.status)


async def _http_error(_: Request, error: HTTPException) -> Response:
    return JSONResponse({"detail": error.detail}, status_code=error.status_code, headers=error.headers)
