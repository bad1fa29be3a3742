"""Keys are taken from one header only and compared by digest; half a connection is a client that left."""

import logging
import socket
import time
from typing import Any

import httpx
import orjson
import pytest

from darktree_billing.client import key_id_of
from darktree_billing.key_format import SECRET_LENGTH, _checksum, make_key, prefix_of

SCRIPTED = "qwen25-32b-awq"
TIMED = 150  # keys of each kind
STALLED = {
    "id": "c", "created": 1, "model": SCRIPTED,
    "choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": None, "finish_reason": None}],
    "usage": {"prompt_tokens": 10, "total_tokens": 11, "completion_tokens": 1},
}  # fmt: skip


@pytest.mark.parametrize(
    "name", ["api_key", "key", "access_token", "token", "authorization", "Authorization"]
)
def test_a_key_in_a_query_string_is_no_key_and_reaches_no_log(
    platform: Any, customer: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for method, path in (("GET", "/v1/models"), ("GET", "/v1/credits"), ("POST", "/v1/chat/completions")):
        answer = httpx.request(method, f"{platform.gateway_url}{path}", params={name: customer.key})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert customer.key not in answer.text
    # What else logs here, the test's own client and uvicorn's access log, `logs.configure` silences in a process.
    told = [record for record in caplog.records if record.name.startswith("darktree")]
    assert told
    assert customer.key not in "".join(f"{record.getMessage()} {record.__dict__}" for record in told)


@pytest.mark.parametrize("header", ["X-Api-Key", "Api-Key", "Cookie", "Proxy-Authorization"])
def test_a_key_in_another_header_is_no_key(platform: Any, customer: Any, header: str) -> None:
    value = f"key={customer.key}" if header == "Cookie" else f"Bearer {customer.key}"
    assert httpx.get(f"{platform.gateway_url}/v1/models", headers={header: value}).status_code == 401


def test_a_refusal_does_not_tell_how_much_of_a_key_was_right(platform: Any, customer: Any) -> None:
    """A known id with another secret, and an unknown id: the same answer, and both were looked up alike."""
    known_id = key_id_of(customer.key)
    other = platform.client_of(customer.id).key
    _, _, other_rest = other.removeprefix("dt_live_").partition("_")
    mixed = f"dt_live_{known_id}_{other_rest}"
    answers = [
        httpx.get(f"{platform.gateway_url}/v1/models", headers={"Authorization": f"Bearer {key}"})
        for key in (mixed, make_key().text, customer.key[:-1], "dt_live_x")
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.text for answer in answers}) == 1
    assert len({tuple(sorted(set(answer.headers) - {"date"})) for answer in answers}) == 1


def test_how_long_a_refusal_takes_does_not_tell_how_much_of_a_key_was_right(
    platform: Any, customer: Any
) -> None:
    """Keys that are right but for their end, and right in nothing but their id: nobody could sort them by time.

    Each is new, so that no gateway knows its answer already; they are asked in turns, so that a busy machine is as slow
    for the one as for the other. The measure is the chance that one of the first kind takes longer than one of the
    second; it is 1/2 where time tells nothing, give or take 0.04 for so many.
    """
    body = prefix_of(key_id_of(customer.key) or "") + "_"
    secret = customer.key.removeprefix(body)[:SECRET_LENGTH]
    nearly: list[float] = []
    wholly: list[float] = []
    with httpx.Client(base_url=platform.gateway_url) as client:
        for number in range(TIMED):
            tail = make_key().text.removeprefix("dt_live_").partition("_")[2]
            for kept, took in ((SECRET_LENGTH - 4, nearly), (0, wholly))[:: 1 if number % 2 else -1]:
                text = body + secret[:kept] + tail[: SECRET_LENGTH - kept]
                key = text + _checksum(text)
                assert key_id_of(key) == key_id_of(customer.key)
                started = time.perf_counter()
                answer = client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
                took.append(time.perf_counter() - started)
                assert answer.status_code == 401
    slower = sum((one > other) + (one == other) / 2 for one in nearly for other in wholly)
    assert 0.35 < slower / TIMED**2 < 0.65


def test_a_client_that_closes_its_half_of_the_connection_has_left_and_leaves_no_hold(
    platform: Any, customer: Any, engine: Any, eventually: Any
) -> None:
    engine.say(STALLED, end="stall")
    body = orjson.dumps({"model": SCRIPTED, "messages": [{"role": "user", "content": "x"}], "stream": True})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {customer.key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    url = httpx.URL(platform.gateway_url)
    with socket.create_connection((url.host, url.port or 80), timeout=10) as connection:
        connection.sendall(head.encode() + body)
        told = b""
        while b'"a"' not in told:
            told += connection.recv(65_536)
        connection.shutdown(socket.SHUT_WR)
        eventually(lambda: engine.left == 1, "the abort")
    (charge,) = eventually(customer.usage, "the charge")
    assert (charge["outcome"], charge["total_tokens"]) == ("abandoned", 11)
    assert platform.open_holds(customer.id) == 0
    assert customer.chat(max_tokens=1).status_code == 200
