"""What every service answers: ids, refusals in one shape, health, metrics, and nothing before it is committed."""

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import psycopg
import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy import text
from starlette.types import ASGIApp

from darktree_kit.app import create_app
from darktree_kit.db import Database, Session
from darktree_kit.errors import Conflict, TooManyRequests, Unauthorized

LOG_TIMEOUT_SECONDS = 5
Serve = Callable[[ASGIApp], str]


class Body(BaseModel):
    count: int


def make_app(database_url: str | None = None, **options: Any) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if database_url is None:
            yield
            return
        app.state.database = Database(database_url, pool_size=2)
        app.state.ready = app.state.database.ping
        yield
        await app.state.database.close()

    app = create_app("kit-test", lifespan=lifespan, title="t", description="d", **options)

    @app.get("/conflict")
    async def conflict() -> None:
        raise Conflict("Another body.", param="amount")

    @app.get("/slow-down")
    async def slow_down() -> None:
        raise TooManyRequests("Too many.", headers={"Retry-After": "7"})

    @app.get("/stranger")
    async def stranger() -> None:
        raise Unauthorized("Who are you?")

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("a secret detail")

    @app.post("/count")
    async def count(body: Body) -> int:
        return body.count

    @app.post("/rows/{number}")
    async def add_row(number: int, session: Session) -> dict[str, int]:
        await session.execute(text("INSERT INTO child VALUES (:number)"), {"number": number})
        return {"number": number}

    return app


@pytest.fixture(scope="module")
def url(serving_context: Callable[[ASGIApp], Any]) -> Any:
    with serving_context(make_app()) as base_url:
        yield base_url


def test_a_refusal_has_openais_shape_and_its_own_headers(url: str) -> None:
    answer = httpx.get(f"{url}/conflict")
    assert answer.status_code == 409
    assert answer.json() == {
        "error": {
            "message": "Another body.",
            "type": "invalid_request_error",
            "param": "amount",
            "code": "conflict",
        }
    }
    assert answer.headers["x-should-retry"] == "false"
    assert httpx.get(f"{url}/slow-down").headers["retry-after"] == "7"
    assert "Bearer" in httpx.get(f"{url}/stranger").headers["www-authenticate"]


def test_an_unhandled_error_tells_nothing_of_itself(url: str) -> None:
    answer = httpx.get(f"{url}/broken")
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "param", "code"),
    [
        ("POST", "/count", b'{"count": "x"}', 400, "count", "invalid_value"),
        ("POST", "/count", b"{", 400, "1", "invalid_value"),
        ("POST", "/count", b"", 400, None, "invalid_value"),
        ("GET", "/nowhere", b"", 404, None, "unknown_url"),
        ("DELETE", "/count", b"", 405, None, "method_not_allowed"),
    ],
)
def test_what_the_framework_refuses_has_the_same_shape(
    url: str, method: str, path: str, content: bytes, status: int, param: str | None, code: str
) -> None:
    answer = httpx.request(method, url + path, content=content, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code)
    assert error["type"] == "invalid_request_error"


def test_each_answer_has_a_request_id_and_a_callers_id_is_kept_when_it_is_trusted(url: str) -> None:
    first, second = (httpx.get(f"{url}/healthz").headers["x-request-id"] for _ in range(2))
    assert first != second
    assert (
        httpx.get(f"{url}/healthz", headers={"X-Request-Id": "req_mine-1"}).headers["x-request-id"]
        == "req_mine-1"
    )
    odd = httpx.get(f"{url}/healthz", headers={"X-Request-Id": "a b{}"}).headers["x-request-id"]
    assert odd.startswith("req_")


def test_at_the_edge_a_strangers_request_id_is_not_taken(serve: Serve) -> None:
    edge = serve(make_app(trust_request_id=False))
    answer = httpx.get(f"{edge}/healthz", headers={"X-Request-Id": "req_mine-1"})
    assert answer.headers["x-request-id"] != "req_mine-1"


def test_a_service_without_a_lifespan_that_says_so_is_not_ready(url: str) -> None:
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{url}/readyz").status_code == 503


def test_requests_are_counted_by_the_template_of_their_route(url: str) -> None:
    httpx.get(f"{url}/no-such-route-{'x' * 50}")
    httpx.post(f"{url}/count", json={"count": 1})
    text_ = httpx.get(f"{url}/metrics").text
    assert 'route="/count",service="kit-test",status="200"' in text_
    assert 'route="other"' in text_
    assert "no-such-route" not in text_


def test_a_commit_that_fails_is_never_answered_with_success(
    serve: Serve, empty_database: Callable[[], Any]
) -> None:
    database = empty_database()

    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE parent (number int PRIMARY KEY)")
        connection.execute("CREATE TABLE child (number int REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")
        connection.execute("INSERT INTO parent VALUES (1)")
        url = serve(make_app(database.admin_url))
        assert httpx.post(f"{url}/rows/1").status_code == 200
        # The statement succeeds; only the commit fails. With FastAPI's default scope this would be a 200.
        assert httpx.post(f"{url}/rows/2").status_code == 500
        assert connection.execute("SELECT number FROM child").fetchall() == [(1,)]
    assert httpx.get(f"{url}/readyz").status_code == 200


def test_a_request_is_one_log_line_with_its_id_and_without_its_body(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="darktree.http"):
        httpx.post(f"{url}/count", json={"count": 4242})
        deadline = time.monotonic() + LOG_TIMEOUT_SECONDS  # the line is written after the last byte has left
        lines: list[dict[str, object]] = []
        while not lines and time.monotonic() < deadline:
            lines = [vars(record) for record in caplog.records if vars(record).get("route") == "/count"]
    assert [line["status"] for line in lines] == [200]
    assert "4242" not in str(lines)
