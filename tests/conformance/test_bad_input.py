"""Whatever is wrong with a request, it is refused in OpenAI's shape, costs nothing, and reaches no engine."""

import gzip
import json
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

QUICK = "quick"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
REVOCATION_SECONDS = 10.0
MIB = 1024 * 1024
UNKNOWN_KEY = "dt_live_000000000000_" + "0" * 30 + "4VGSQo"
JSON = {"Content-Type": "application/json"}


def chat(**changes: Any) -> dict[str, Any]:
    body = {"model": QUICK, "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]} | changes
    return {name: value for name, value in body.items() if value is not ...}


def completion(**changes: Any) -> dict[str, Any]:
    body = {"model": QUICK, "max_tokens": 4, "prompt": "hello"} | changes
    return {name: value for name, value in body.items() if value is not ...}


def message(**changes: Any) -> dict[str, Any]:
    return chat(messages=[{"role": "user", "content": "hello"} | changes])


@pytest.fixture(autouse=True)
def nothing_happens(platform: Any, customer: Any) -> Iterator[None]:
    """After every test here the customer's books are as before, and no engine was asked anything."""
    books, calls = customer.books(), platform.engine_calls()
    yield
    assert customer.settled_books() == books
    assert platform.engine_calls() == calls
    assert platform.process.poll() is None


def assert_refused(answer: httpx.Response, status: int, code: str | None, param: Any = ...) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")
    error = answer.json()["error"]
    assert list(answer.json()) == ["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["code"] == code
    assert isinstance(error["message"], str)
    assert error["message"]
    assert len(error["message"]) < 1_000
    if param is not ...:
        assert error["param"] == param
    assert "x-darktree-entry-id" not in answer.headers


DEEP = b'{"model":"quick","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
NESTED = (
    b'{"model":"quick","messages":[{"role":"user","content":"a"}],"metadata":'
    + b'{"a":' * 300
    + b"1"
    + b"}" * 301
)
RAW: dict[str, bytes] = {
    "nothing": b"",
    "half an object": b'{"model": "quick", "messages": [',
    "no JSON": b"hello",
    "two objects": b"{} {}",
    "a list": b"[]",
    "null": b"null",
    "a number": b"17",
    "a string": b'"hello"',
    "a trailing comma": b'{"model": "quick",}',
    "single quotes": b"{'model': 'quick'}",
    "not a number": b'{"model": "quick", "messages": [], "temperature": NaN}',
    "infinity": b'{"model": "quick", "messages": [], "temperature": Infinity}',
    "a lone byte": b'{"model": "\xff"}',
    "an overlong form": b'{"model": "\xc0\xaf"}',
    "a surrogate in UTF-8": b'{"model": "\xed\xa0\x80"}',
    "a lone surrogate, escaped": b'{"model": "\\ud800"}',
    "a control character": b'{"model": "a\x00b"}',
    "UTF-16": '{"model": "quick"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"model": "quick"}',
    "nested a hundred thousand deep": DEEP,
    "nested three hundred deep": NESTED,
}


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("case", RAW)
def test_what_is_no_object_of_json_is_not_parsed(customer: Any, path: str, case: str) -> None:
    assert_refused(customer.post(path, content=RAW[case], headers=JSON), 400, "invalid_json", None)


FIELDS: dict[str, tuple[str, dict[str, Any], str | None, str]] = {
    "no model": (CHAT, chat(model=...), "missing_required_parameter", "model"),
    "a number for the model": (CHAT, chat(model=3), "invalid_type", "model"),
    "an empty model": (CHAT, chat(model=""), "invalid_type", "model"),
    "a long model": (CHAT, chat(model="m" * 10_000), "invalid_type", "model"),
    "no messages": (CHAT, chat(messages=...), "missing_required_parameter", "messages"),
    "a string for the messages": (CHAT, chat(messages="hello"), "invalid_type", "messages"),
    "empty messages": (CHAT, chat(messages=[]), "empty_array", "messages"),
    "a string for a message": (CHAT, chat(messages=["hello"]), "invalid_type", "messages[0]"),
    "no role": (CHAT, chat(messages=[{"content": "a"}]), "missing_required_parameter", "messages[0].role"),
    "an unknown role": (CHAT, message(role="wizard"), "invalid_value", "messages[0].role"),
    "a list for a role": (CHAT, message(role=["user"]), "invalid_type", "messages[0].role"),
    "no content": (CHAT, message(content=None), "missing_required_parameter", "messages[0].content"),
    "a number for the content": (CHAT, message(content=1), "invalid_type", "messages[0].content"),
    "an image": (CHAT, message(content=[{"type": "image_url", "image_url": {"url": "x"}}]), "unsupported_parameter",
                 "messages[0].content[0].type"),
    "an unknown member of a message": (CHAT, message(colour="red"), "unknown_parameter", "messages[0].colour"),
    "five thousand messages": (CHAT, chat(messages=[{"role": "user", "content": ""}] * 5_000),
                               "array_above_max_length", "messages"),
    "an unknown field": (CHAT, chat(colour="red"), "unknown_parameter", "colour"),
    "an unknown field that is null": (CHAT, chat(colour=None), "unknown_parameter", "colour"),
    "a field of the other endpoint": (CHAT, chat(prompt="a"), "unknown_parameter", "prompt"),
    "a field that an engine would take": (CHAT, chat(cache_salt="x"), "unsupported_parameter", "cache_salt"),
    "a field that would leave the meter": (CHAT, chat(truncate_prompt_tokens=1), "unsupported_parameter",
                                           "truncate_prompt_tokens"),
    "a field that would run on": (CHAT, chat(vllm_xargs={"a": 1}), "unknown_parameter", "vllm_xargs"),
    "n of nothing": (CHAT, chat(n=0), "integer_below_min_value", "n"),
    "n below nothing": (CHAT, chat(n=-1), "integer_below_min_value", "n"),
    "n absurd": (CHAT, chat(n=129), "integer_above_max_value", "n"),
    "n beyond any integer": (CHAT, chat(n=10**30), None, "n"),
    "n true": (CHAT, chat(n=True), "invalid_type", "n"),
    "n as text": (CHAT, chat(n="2"), "invalid_type", "n"),
    "n with a fraction": (CHAT, chat(n=1.0), "invalid_type", "n"),
    "max_tokens of nothing": (CHAT, chat(max_tokens=0), "integer_below_min_value", "max_tokens"),
    "max_tokens below nothing": (CHAT, chat(max_tokens=-1), "integer_below_min_value", "max_tokens"),
    "max_tokens absurd": (CHAT, chat(max_tokens=2**62), "context_length_exceeded", "max_tokens"),
    "max_tokens past 64 bits": (CHAT, chat(max_tokens=2**63), "integer_above_max_value", "max_tokens"),
    "max_tokens true": (CHAT, chat(max_tokens=True), "invalid_type", "max_tokens"),
    "max_tokens as text": (CHAT, chat(max_tokens="9"), "invalid_type", "max_tokens"),
    "two limits that differ": (CHAT, chat(max_completion_tokens=9), "invalid_value", "max_tokens"),
    "max_completion_tokens of nothing": (CHAT, chat(max_tokens=..., max_completion_tokens=0),
                                         "integer_below_min_value", "max_completion_tokens"),
    "min_tokens past the limit": (CHAT, chat(min_tokens=5), "invalid_value", "min_tokens"),
    "stream as a number": (CHAT, chat(stream=1), "invalid_type", "stream"),
    "stream as text": (CHAT, chat(stream="true"), "invalid_type", "stream"),
    "stream_options without a stream": (CHAT, chat(stream_options={"include_usage": True}), "invalid_value",
                                        "stream_options"),
    "stream_options of a wrong type": (CHAT, chat(stream=True, stream_options=1), "invalid_type", "stream_options"),
    "an unknown stream option": (CHAT, chat(stream=True, stream_options={"a": 1}), "unknown_parameter",
                                 "stream_options.a"),
    "temperature true": (CHAT, chat(temperature=True), "invalid_type", "temperature"),
    "temperature below 0": (CHAT, chat(temperature=-0.1), "decimal_below_min_value", "temperature"),
    "temperature too high": (CHAT, chat(temperature=2.1), "decimal_above_max_value", "temperature"),
    "too many stops": (CHAT, chat(stop=["a"] * 17), "array_above_max_length", "stop"),
    "a number among the stops": (CHAT, chat(stop=["a", 1]), "invalid_type", "stop[1]"),
    "a bias out of bounds": (CHAT, chat(logit_bias={"1": 101}), "decimal_above_max_value", "logit_bias.1"),
    "a seed past 64 bits": (CHAT, chat(seed=2**64), None, "seed"),
    "top_logprobs alone": (CHAT, chat(top_logprobs=1), "invalid_value", "top_logprobs"),
    "log probabilities as a number": (CHAT, chat(logprobs=1), "invalid_type", "logprobs"),
    "tools as an object": (CHAT, chat(tools={}), "invalid_type", "tools"),
    "longer than the context": (CHAT, chat(max_tokens=4_097), "context_length_exceeded", "max_tokens"),
    "no prompt": (COMPLETIONS, completion(prompt=...), "missing_required_parameter", "prompt"),
    "an empty prompt": (COMPLETIONS, completion(prompt=""), "empty_string", "prompt"),
    "no prompts": (COMPLETIONS, completion(prompt=[]), "empty_array", "prompt"),
    "a number for the prompt": (COMPLETIONS, completion(prompt=1), "invalid_type", "prompt"),
    "mixed prompts": (COMPLETIONS, completion(prompt=["a", 1]), "invalid_type", "prompt[1]"),
    "true among token ids": (COMPLETIONS, completion(prompt=[1, True]), "invalid_type", "prompt[1]"),
    "a token id below 0": (COMPLETIONS, completion(prompt=[1, -1]), "invalid_type", "prompt[1]"),
    "a token id past any integer": (COMPLETIONS, completion(prompt=[2**64]), "invalid_type", "prompt[0]"),
    "too many prompts": (COMPLETIONS, completion(prompt=["a"] * 129), "array_above_max_length", "prompt"),
    "too many answers": (COMPLETIONS, completion(prompt=["a"] * 128, n=9), "invalid_value", "n"),
    "best_of past n": (COMPLETIONS, completion(best_of=2), "unsupported_parameter", "best_of"),
    "a suffix": (COMPLETIONS, completion(suffix="a"), "unsupported_parameter", "suffix"),
    "log probabilities true": (COMPLETIONS, completion(logprobs=True), "invalid_type", "logprobs"),
}  # fmt: skip


@pytest.mark.parametrize("case", FIELDS)
def test_a_wrong_field_is_named(customer: Any, case: str) -> None:
    path, body, code, param = FIELDS[case]
    answer = customer.post(path, json=body)
    assert_refused(answer, 400, code or answer.json()["error"]["code"], param)
    assert answer.headers["x-ratelimit-remaining-tokens"] == "10000000"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_an_unknown_model_is_not_found_and_a_dedicated_one_is_not_told_from_it(
    customer: Any, path: str
) -> None:
    for model in ("gpt-4o", "private", "quick\n", "QUICK", "../quick"):
        body = chat(model=model) if path == CHAT else completion(model=model)
        assert_refused(customer.post(path, json=body), 404, "model_not_found", "model")


def test_a_large_body_is_refused_by_its_declared_size_before_it_is_read(customer: Any, platform: Any) -> None:
    host, port = platform.http.base_url.host, platform.http.base_url.port
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {customer.key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {10 * 1024 * MIB}\r\n\r\n"
    with socket.create_connection((host, port), timeout=10) as connection:
        connection.sendall(head.encode())
        assert connection.recv(65_536).startswith(b"HTTP/1.1 413 ")


def test_a_large_body_is_refused_whatever_it_declares(customer: Any) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(80):
            yield b" " * 65_536

    for content in (b" " * (4 * MIB + 1), chunks()):
        answer = customer.post(CHAT, content=content, headers=JSON)
        assert_refused(answer, 413, "request_too_large", None)


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=a",
        "application/jsonl",
    ],
)
def test_only_json_is_read(customer: Any, content_type: str) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    content = json.dumps(chat()).encode()
    assert_refused(customer.post(CHAT, content=content, headers=headers), 415, "unsupported_media_type", None)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "identity, gzip"])
def test_compressed_bodies_are_not_unpacked(customer: Any, encoding: str) -> None:
    content = gzip.compress(b" " * 50 * MIB)
    answer = customer.post(CHAT, content=content, headers=JSON | {"Content-Encoding": encoding})
    assert_refused(answer, 415, "unsupported_media_type", None)


@pytest.mark.parametrize(
    "authorization",
    [
        None, "", "Bearer", "Basic dTpw", "bearer x", "Bearer sk-abc", "Bearer " + "a" * 5_000,
        f"Bearer {UNKNOWN_KEY}", f"Token {UNKNOWN_KEY}", UNKNOWN_KEY, "Bearer dt_live_é", "Bearer a b",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/v1/usage", "/v1/credits"])
def test_without_a_good_key_nobody_is_let_in(platform: Any, path: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization.encode("utf-8")}
    method = "POST" if path == CHAT else "GET"
    body = {"json": chat()} if path == CHAT else {}
    answer = platform.http.request(method, path, headers=headers, **body)
    assert_refused(answer, 401, "invalid_api_key", None)
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert "x-ratelimit-limit-tokens" not in answer.headers


def test_two_different_keys_in_one_request_do_not_mix(platform: Any, customer: Any) -> None:
    headers = [("Authorization", f"Bearer {customer.key}"), ("Authorization", f"Bearer {UNKNOWN_KEY}")]
    assert_refused(platform.http.post(CHAT, headers=headers, json=chat()), 401, "invalid_api_key")


def test_another_customers_header_is_forbidden_whatever_it_holds(platform: Any, customer: Any) -> None:
    other = platform.customer()
    for name in (other.id, "", "demo", customer.id.upper(), f"{customer.id},{other.id}", "é".encode()):
        answer = customer.post(CHAT, json=chat(), headers={"X-Customer-Id": name})
        assert_refused(answer, 403, "customer_mismatch", "X-Customer-Id")
        answer = platform.http.get("/v1/usage", headers=customer.headers | {"X-Customer-Id": name})
        assert_refused(answer, 403, "customer_mismatch", "X-Customer-Id")


def test_a_revoked_key_is_refused_by_every_gateway_within_ten_seconds(
    platform: Any, customer: Any, eventually: Callable[..., Any]
) -> None:
    second = platform.with_key(customer.id)

    urls = [f"{platform.url(name)}/v1/models" for name in ("gateway-1", "gateway-2")]

    def asked() -> list[int]:
        return [platform.http.get(url, headers=second.headers).status_code for url in urls]

    assert asked() == [200, 200]
    key_id = second.key.removeprefix("dt_live_").partition("_")[0]
    platform.admin("DELETE", f"/keys/{key_id}")
    eventually(lambda: asked() == [401, 401], "the key is refused", REVOCATION_SECONDS)
    assert_refused(second.post(CHAT, json=chat()), 401, "invalid_api_key")
    assert platform.http.get("/v1/models", headers=customer.headers).status_code == 200


def test_an_expired_key_is_refused(platform: Any, customer: Any, eventually: Callable[..., Any]) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=1.5)
    brief = platform.with_key(customer.id, expires_at=soon.isoformat())
    status = platform.http.get("/v1/models", headers=brief.headers).status_code
    assert status == 200 or datetime.now(UTC) >= soon
    expired = lambda: platform.http.get("/v1/models", headers=brief.headers).status_code == 401  # noqa: E731
    eventually(expired, "the key is refused", REVOCATION_SECONDS)
    assert_refused(brief.post(CHAT, json=chat()), 401, "invalid_api_key")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", CHAT, 405, "method_not_allowed"), ("PUT", CHAT, 405, "method_not_allowed"),
        ("DELETE", CHAT, 405, "method_not_allowed"), ("PATCH", COMPLETIONS, 405, "method_not_allowed"),
        ("PURGE", CHAT, 405, "method_not_allowed"), ("POST", "/v1/models", 405, "method_not_allowed"),
        ("OPTIONS", CHAT, 405, "method_not_allowed"), ("OPTIONS", "/v1/usage", 405, "method_not_allowed"),
        ("POST", "/v1/usage", 405, "method_not_allowed"), ("GET", "/v1/embeddings", 405, "method_not_allowed"),
        ("GET", "/v1/responses", 405, "method_not_allowed"), ("POST", "/v1/chat", 404, "unknown_url"),
        ("GET", "/v1/responses/resp_1", 404, "unknown_url"), ("POST", "/v1/messages", 404, "unknown_url"),
        ("POST", "/v1/moderations", 404, "unknown_url"), ("POST", "/v1/images/generations", 404, "unknown_url"),
        ("POST", "/v1/audio/speech", 404, "unknown_url"), ("POST", "/v1/files", 404, "unknown_url"),
        ("POST", "/v1/batches", 404, "unknown_url"), ("POST", "/v1/rerank", 404, "unknown_url"),
        ("POST", "/pooling", 404, "unknown_url"), ("POST", "/classify", 404, "unknown_url"),
        ("POST", "/v2/embed", 404, "unknown_url"), ("POST", "/inference/v1/generate", 404, "unknown_url"),
        ("POST", "/v1/chat/completions/render", 404, "unknown_url"), ("POST", "/scale_elastic_ep", 404, "unknown_url"),
        ("POST", "/v1/chat/completions/", 404, "unknown_url"), ("POST", "//v1/chat/completions", 404, "unknown_url"),
        ("POST", "/v1//chat/completions", 404, "unknown_url"), ("POST", "/v1/chat%2Fcompletions", 200, None),
        ("POST", "/v1/./chat/completions", 404, "unknown_url"),
        ("POST", "/v1/../v1/chat/completions", 404, "unknown_url"),
        ("POST", "/x/../v1/chat/completions", 404, "unknown_url"), ("POST", "/v1%2fcompletions", 200, None),
        ("POST", "/V1/completions", 404, "unknown_url"), ("POST", "/v1/completions;a=1", 404, "unknown_url"),
        ("POST", "/v1/completions%00", 404, "unknown_url"), ("POST", "/v1/completions%0d%0a", 404, "unknown_url"),
        ("POST", "/v1/completions%ff", 404, "unknown_url"), ("POST", "/completions", 404, "unknown_url"),
        ("POST", "/tokenize", 404, "unknown_url"), ("POST", "/detokenize", 404, "unknown_url"),
        ("POST", "/v1/tokenize", 200, None), ("GET", "/metrics", 404, "unknown_url"),
        ("GET", "/healthz", 404, "unknown_url"), ("GET", "/readyz", 404, "unknown_url"),
        ("GET", "/metrics/", 404, "unknown_url"), ("GET", "/v1/usage/", 404, "unknown_url"),
        ("GET", "//metrics", 404, "unknown_url"),
        ("GET", "/docs", 404, "unknown_url"), ("GET", "/admin/customers", 404, "unknown_url"),
        ("GET", "/internal/catalog", 404, "unknown_url"), ("GET", "/faults", 404, "unknown_url"),
        ("GET", "/v1/accounts/demo", 404, "unknown_url"), ("POST", "/v1/operations", 404, "unknown_url"),
        ("POST", "/v1/load_lora_adapter", 404, "unknown_url"), ("POST", "/invocations", 404, "unknown_url"),
        ("GET", "/", 404, "unknown_url"), ("GET", "*", 404, "unknown_url"),
    ],
)  # fmt: skip
def test_there_is_no_way_around_the_meter(
    platform: Any, customer: Any, method: str, path: str, status: int, code: str | None
) -> None:
    """Raw targets, as no client library would leave them; the body is refused where the path is the meter's own."""
    content = json.dumps({"model": QUICK, "max_tokens": 0}).encode()
    answer = raw_request(platform, customer, method, path, content)
    if code is None:  # the same path, written otherwise: it is the meter that answers
        assert_refused(answer, 400, "integer_below_min_value", "max_tokens")
    else:
        assert_refused(answer, status, code)


def test_a_head_is_answered_without_a_body(platform: Any, customer: Any) -> None:
    for path in (CHAT, "/v1/models", "/metrics", "/nowhere"):
        answer = platform.http.head(path, headers=customer.headers)
        assert answer.status_code in {404, 405}
        assert answer.content == b""
        assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "header",
    [
        b"X-Customer-Id: a\r\nX-Injected: b", b"X-Request-Id: a\rb", b"X-Request-Id: a\nX-Injected: b",
        b"X-Request-Id: \xff\xfe", b"X-Request-Id: " + b"a" * 4_000, b"X-Request-Id: req_1; DROP TABLE", b"X-\xe9: a",
        b"Content-Length: 3", b"Transfer-Encoding: chunked", b"Content-Length: -1", b"Content-Length: 1e3",
        b"X-Null: a\x00b", b": no name", b"No colon", b" folded",
    ],
)  # fmt: skip
def test_headers_cannot_inject_anything(platform: Any, customer: Any, header: bytes) -> None:
    """Refused by the server itself, or answered as if it were not there; never found in the answer."""
    content = json.dumps(chat(n=0)).encode()
    told = raw_exchange(platform, customer, "POST", CHAT, content, header)
    head = told.partition(b"\r\n\r\n")[0]
    assert b"X-Injected" not in head
    assert b"x-injected" not in head.lower()
    if head:
        assert head.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 403 ", b"HTTP/1.1 413 ")), head
        assert head.count(b"HTTP/1.1") == 1


def raw_exchange(
    platform: Any, customer: Any, method: str, target: str, content: bytes, header: bytes = b""
) -> bytes:
    """Send bytes as they are, and return all that is answered."""
    host, port = platform.http.base_url.host, platform.http.base_url.port
    lines = [f"{method} {target} HTTP/1.1".encode(), b"Host: " + host.encode(), b"Connection: close"]
    lines += [f"Authorization: Bearer {customer.key}".encode(), b"Content-Type: application/json"]
    lines += [f"Content-Length: {len(content)}".encode(), *([header] if header else []), b"", content]
    told = b""
    with socket.create_connection((host, port), timeout=10) as connection:
        connection.sendall(b"\r\n".join(lines))
        connection.shutdown(socket.SHUT_WR) if header else None
        try:
            while part := connection.recv(65_536):
                told += part
        except ConnectionResetError:
            pass
    return told


def raw_request(platform: Any, customer: Any, method: str, target: str, content: bytes) -> httpx.Response:
    head, _, body = raw_exchange(platform, customer, method, target, content).partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = [(name, text.strip()) for name, _, text in (line.partition(":") for line in lines)]
    return httpx.Response(int(status.split(" ")[1]), headers=headers, content=body)
