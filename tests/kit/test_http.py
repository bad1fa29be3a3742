"""A call between services keeps the type of a refusal, and tells it apart from silence."""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import orjson
import pytest
from fastapi import Depends, FastAPI, Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from darktree_kit.app import create_app
from darktree_kit.auth import Callers, require
from darktree_kit.errors import ApiError, Conflict, Unauthorized, Unreachable
from darktree_kit.http import InternalClient

TOKEN = "a-token"


def make_app() -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield

    app = create_app("callee", lifespan=lifespan, title="t", description="d")
    app.state.callers = Callers({"gateway": TOKEN, "nobody": ""})

    @app.get("/who")
    async def who(request: Request, caller: str = Depends(require("gateway"))) -> dict[str, str]:
        return {"caller": caller, "request_id": request.headers["x-request-id"]}

    @app.get("/conflict")
    async def conflict() -> None:
        raise Conflict("Another body.", param="amount", code="differs")

    @app.get("/plain")
    async def plain() -> PlainTextResponse:
        return PlainTextResponse("Bad gateway", 502)

    return app


@pytest.fixture
async def client(serve: Callable[[ASGIApp], str]) -> AsyncIterator[InternalClient]:
    async with InternalClient(serve(make_app()), TOKEN, service="callee") as client:
        yield client


async def test_a_call_carries_the_token_and_gets_the_answer(client: InternalClient) -> None:
    answer = await client.call_json("GET", "/who", headers={"X-Request-Id": "req_1"})
    assert answer == {"caller": "gateway", "request_id": "req_1"}


async def test_a_refusal_arrives_as_it_was_raised(client: InternalClient) -> None:
    with pytest.raises(ApiError) as refused:
        await client.call("GET", "/conflict")
    error = refused.value
    assert (error.answer_status, error.answer_code, error.param, error.message) == (
        409,
        "differs",
        "amount",
        "Another body.",
    )


async def test_an_answer_that_nobody_here_wrote_counts_as_no_answer(client: InternalClient) -> None:
    with pytest.raises(Unreachable, match="502"):
        await client.call("GET", "/plain")


async def test_silence_is_unreachable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        async with InternalClient(url, TOKEN, service="callee") as client:
            with pytest.raises(Unreachable, match="callee did not answer"):
                await client.call("GET", "/who")


async def test_a_slow_answer_is_unreachable_within_the_timeout() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        async with InternalClient(url, TOKEN, service="callee", timeout=0.2) as client:
            with pytest.raises(Unreachable):
                await client.call("GET", "/who")


async def test_the_token_decides_who_calls(serve: Callable[[ASGIApp], str]) -> None:
    url = serve(make_app())
    for token in ("wrong", " ", TOKEN + "x"):
        async with InternalClient(url, token, service="callee") as client:
            with pytest.raises(ApiError) as refused:
                await client.call("GET", "/who")
            assert refused.value.answer_status == 401


def test_an_empty_token_admits_nobody() -> None:
    callers = Callers({"nobody": ""})
    for header in (None, "", "Bearer", "Bearer ", "Basic abc"):
        with pytest.raises(Unauthorized):
            callers.name_of(header)


def test_a_caller_is_known_by_each_of_its_tokens_while_one_is_being_replaced() -> None:
    callers = Callers({"gateway": "new, old", "nobody": ","})
    assert [callers.name_of(f"Bearer {token}") for token in ("new", "old")] == ["gateway", "gateway"]
    for token in ("new, old", "new,old", ",", "ne"):
        with pytest.raises(Unauthorized):
            callers.name_of(f"Bearer {token}")


def test_every_error_has_a_body_of_openais_shape() -> None:
    assert orjson.loads(orjson.dumps(Unreachable("gone").body())) == {
        "error": {
            "message": "gone",
            "type": "service_unavailable_error",
            "param": None,
            "code": "service_unreachable",
        }
    }
