"""Requests that nobody thought of: whatever they are, the gateway answers as described, and the books stay right."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

QUICK = "quick"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
# Every status that the gateway's README names for a completion whose engine and ledger are well.
STATUSES = {200, 400, 404, 413, 415, 429}
TYPES = {"invalid_request_error", "tokens", "insufficient_quota"}
RECEIVE_TIMEOUT_SECONDS = 10.0
PATIENCE_SECONDS = 0.1
MAX_TOKENS = 6  # so that an answer that is served costs little time

BOUNDED = settings(
    max_examples=500, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
FEWER = settings(BOUNDED, max_examples=100)

TEXT = st.text(max_size=20)
NUMBERS = st.one_of(
    st.integers(),
    st.integers(-3, 200),
    st.sampled_from([0, -1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**40, 1e308, -0.0, 0.5]),
    st.floats(allow_nan=False, allow_infinity=False),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXT)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
FIELDS = [
    "model", "messages", "prompt", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens",
    "temperature", "top_p", "stop", "seed", "logprobs", "top_logprobs", "logit_bias", "presence_penalty", "user",
    "frequency_penalty", "tools", "tool_choice", "response_format", "best_of", "echo", "suffix", "min_tokens",
    "ignore_eos", "stop_token_ids", "metadata", "reasoning_effort", "chat_template_kwargs", "top_k", "min_p",
    "include_usage", "bad_words", "structured_outputs", "allowed_token_ids", "return_token_ids", "add_special_tokens",
]  # fmt: skip
GOOD_MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "developer"]), "content": st.text(max_size=40)}
)
WILD_MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"]) | TEXT},
    optional={
        "content": st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXT})) | ANYTHING,
        "name": TEXT,
        "tool_call_id": TEXT,
        "tool_calls": ANYTHING,
    },
)
GOOD_MESSAGES = st.lists(GOOD_MESSAGE, min_size=1, max_size=3)
MESSAGES = GOOD_MESSAGES | GOOD_MESSAGES | st.lists(GOOD_MESSAGE | WILD_MESSAGE, min_size=1, max_size=3)
PROMPTS = TEXT | st.lists(TEXT, max_size=3) | st.lists(st.integers(0, 300), max_size=5)
SENSIBLE = st.fixed_dictionaries(
    {},
    optional={
        "stream": st.booleans(),
        "n": st.integers(1, 3),
        "temperature": st.floats(0, 2),
        "seed": st.integers(0, 9),
        "stop": TEXT | st.lists(TEXT, max_size=4),
        "user": TEXT,
        "ignore_eos": st.booleans(),
    },
)
MUTATIONS: st.SearchStrategy[dict[str, Any]] = (
    st.just({})
    | st.dictionaries(st.sampled_from(FIELDS), SCALARS, max_size=1)
    | st.dictionaries(st.sampled_from(FIELDS) | TEXT, ANYTHING, max_size=2)
)


@pytest.fixture(scope="module")
def customer(platform: Any) -> Any:
    return platform.customer()


@pytest.fixture(autouse=True)
def all_is_well_in_the_end(platform: Any, customer: Any, eventually: Callable[..., Any]) -> Iterator[None]:
    """No process died, no hold is left, every charge is an entry, and a plain request is served."""
    pids = platform.gateway_pids()
    yield
    assert platform.gateway_pids() == pids
    assert all(psutil.pid_exists(pid) for pid in pids)
    books = customer.settled_books()
    assert books.held_tokens == 0
    assert books.balance_nanos == 1_000 * 10**9 - 750_000 * books.tokens
    body = {"model": QUICK, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    assert customer.post(CHAT, json=body).status_code == 200
    assert platform.admin("POST", "/ledger/check")["problems"] == []


def small(body: dict[str, Any]) -> dict[str, Any]:
    """Keep what may be generated small, unless the mutation is of that itself and refused."""
    for name in ("max_tokens", "max_completion_tokens"):
        value = body.get(name)
        if type(value) is int and value > MAX_TOKENS:
            body[name] = value if value > 4_096 else MAX_TOKENS
    if "max_completion_tokens" not in body:
        body.setdefault("max_tokens", MAX_TOKENS)
    return body


def encoded(body: Any) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")


def assert_answered(customer: Any, answer: httpx.Response) -> None:
    """An answer with its charge, or a refusal in OpenAI's shape."""
    assert answer.status_code in STATUSES, (answer.status_code, answer.text[:500])
    assert answer.headers["x-request-id"].startswith("req_")
    if answer.status_code == 200:
        charge = customer.charge(answer.headers["x-request-id"])
        assert charge["entry_id"] == answer.headers["x-darktree-entry-id"]
        usage = usage_of(answer)
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            assert charge[name] == usage[name]
        return
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] in TYPES
    assert error["message"]
    assert error["code"] is None or type(error["code"]) is str
    assert "x-darktree-entry-id" not in answer.headers


def usage_of(answer: httpx.Response) -> dict[str, int]:
    if answer.headers["content-type"] == "application/json":
        usage: dict[str, int] = answer.json()["usage"]
        return usage
    events = answer.content.split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    usages = [json.loads(event.removeprefix(b"data: ")).get("usage") for event in events[:-2]]
    found: dict[str, int] = next(usage for usage in reversed(usages) if usage)
    return found


def test_mutated_chats_are_served_and_charged_or_refused(customer: Any) -> None:
    @BOUNDED
    @given(MESSAGES, SENSIBLE, MUTATIONS)
    def check(messages: Any, sensible: Any, mutations: Any) -> None:
        body = small({"model": QUICK, "messages": messages} | sensible | mutations)
        answer = customer.post(CHAT, content=encoded(body), headers={"Content-Type": "application/json"})
        assert_answered(customer, answer)
        served.append(answer.status_code == 200)

    served: list[bool] = []
    check()
    assert min(served.count(True), served.count(False)) > BOUNDED.max_examples // 10


def test_mutated_completions_are_served_and_charged_or_refused(customer: Any) -> None:
    @BOUNDED
    @given(PROMPTS, SENSIBLE, MUTATIONS)
    def check(prompt: Any, sensible: Any, mutations: Any) -> None:
        body = small({"model": QUICK, "prompt": prompt} | sensible | mutations)
        answer = customer.post(
            COMPLETIONS, content=encoded(body), headers={"Content-Type": "application/json"}
        )
        assert_answered(customer, answer)
        served.append(answer.status_code == 200)

    served: list[bool] = []
    check()
    assert min(served.count(True), served.count(False)) > BOUNDED.max_examples // 10


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_any_json_and_any_bytes_are_refused(customer: Any, path: str) -> None:
    before = customer.books()

    @FEWER
    @given(ANYTHING.map(encoded) | st.binary(max_size=200) | broken())
    def check(content: bytes) -> None:
        answer = customer.post(path, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400
        assert_answered(customer, answer)

    check()
    assert customer.books() == before


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A good body with one byte changed, or cut off, such that it is no longer good."""
    content = bytearray(encoded({"model": "nowhere", "messages": 1, "prompt": 1}))
    place = draw(st.integers(0, len(content) - 1))
    if draw(st.booleans()):
        del content[place:]
    else:
        content[place] = draw(st.integers(0, 255))
    return bytes(content)


def test_any_header_is_ignored_or_refused(platform: Any, customer: Any) -> None:
    names = st.sampled_from(
        ["Authorization", "X-Customer-Id", "Content-Type", "Content-Length", "Content-Encoding", "Transfer-Encoding",
         "X-Request-Id", "Host", "Expect", "Connection", "Upgrade", "X-Forwarded-For", "Accept", "TE"]
    )  # fmt: skip
    printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30).map(str.encode)
    before = customer.books()
    answered = 0

    @FEWER
    @given(st.lists(st.tuples(names, printable | st.binary(max_size=30)), max_size=3))
    def check(headers: list[tuple[str, bytes]]) -> None:
        nonlocal answered
        lines = [f"Authorization: Bearer {customer.key}".encode(), b"Host: a"]
        lines += [name.encode() + b": " + value for name, value in headers]
        told = first_answer(platform, b"\r\n".join([b"POST /v1/completions HTTP/1.1", *lines, b"", b""]))
        answered += bool(told)
        for status in statuses(told):
            assert status == 100 or 400 <= status < 500, told

    check()
    assert answered > FEWER.max_examples // 2
    assert customer.settled_books() == before


def test_garbage_on_the_wire_is_refused_or_dropped(platform: Any) -> None:
    starts = st.sampled_from(
        [b"", b"GET ", b"POST /v1/completions ", b"POST /v1/completions HTTP/1.1\r\n", b"PRI * HTTP/2.0"]
    )

    @FEWER
    @given(starts, st.binary(max_size=300))
    def check(start: bytes, rest: bytes) -> None:
        for status in statuses(exchange(platform, start + rest)):
            assert 400 <= status < 500

    check()


def exchange(platform: Any, content: bytes) -> bytes:
    """Send bytes, say that there are no more, and return what is answered until the other side closes."""
    address = (platform.http.base_url.host, platform.http.base_url.port)
    told = b""
    with (
        socket.create_connection(address, timeout=RECEIVE_TIMEOUT_SECONDS) as connection,
        suppress(ConnectionResetError, BrokenPipeError),
    ):
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(65_536):
            told += part
    return told


def first_answer(platform: Any, content: bytes) -> bytes:
    """Send bytes, and return the head of what is answered before long: nothing where more is waited for."""
    address = (platform.http.base_url.host, platform.http.base_url.port)
    with socket.create_connection(address, timeout=PATIENCE_SECONDS) as connection:
        try:
            connection.sendall(content)
            return connection.recv(65_536)
        except (ConnectionResetError, BrokenPipeError, TimeoutError):
            return b""


def statuses(told: bytes) -> list[int]:
    return [int(part[:3]) for part in told.split(b"HTTP/1.1 ")[1:]]


def valid_request(customer: Any, **changes: Any) -> bytes:
    content = encoded({"model": QUICK, "prompt": "hello", "max_tokens": 3} | changes)
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {customer.key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def test_a_request_that_ends_early_at_any_byte_costs_nothing(platform: Any, customer: Any) -> None:
    before = customer.books()
    request = valid_request(customer)
    for length in range(0, len(request), 2):
        for status in statuses(exchange(platform, request[:length])):
            assert 400 <= status < 500
    assert customer.settled_books() == before


def test_a_client_that_leaves_after_any_byte_of_its_answer_leaves_no_hold(
    platform: Any, customer: Any
) -> None:
    request = valid_request(customer, max_tokens=40, stream=True, ignore_eos=True)
    address = (platform.http.base_url.host, platform.http.base_url.port)
    for count in range(0, 2_000, 50):
        with socket.create_connection(address, timeout=RECEIVE_TIMEOUT_SECONDS) as connection:
            connection.sendall(request)
            read = 0
            while read < count and (part := connection.recv(count - read)):
                read += len(part)
    books = customer.settled_books()
    assert books.held_tokens == 0


def test_pipelined_requests_are_answered_in_order_and_each_charged_once(platform: Any, customer: Any) -> None:
    before = customer.settled_books()
    requests = [valid_request(customer, max_tokens=count) for count in (1, 2, 3)]
    requests.append(valid_request(customer, n=0))
    address = (platform.http.base_url.host, platform.http.base_url.port)
    told = b""
    with socket.create_connection(address, timeout=RECEIVE_TIMEOUT_SECONDS) as connection:
        connection.sendall(b"".join(requests))
        while len(statuses(told)) < 4 or not told.endswith(b"}}"):
            told += connection.recv(65_536)
    assert statuses(told) == [200, 200, 200, 400]
    usages = [
        json.loads(part.partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"]
        for part in told.split(b"HTTP/1.1 ")[1:4]
    ]
    assert usages == [1, 2, 3]
    after = customer.settled_books()
    assert after.entries - before.entries == 3
    assert after.tokens - before.tokens == 3 * len("hello") + 6
