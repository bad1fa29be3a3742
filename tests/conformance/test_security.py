"""What an attacker tries at the door, against the process that listens there: nothing gets past the meter.

How bytes become requests is bounded in `tests/kit/test_wire.py`, with times that a test can wait for.
"""

import gzip
import json
import socket
import zlib
from typing import Any

import psutil
import pytest

QUICK = "quick"
METERED = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/tokenize")
TIMEOUT_SECONDS = 10
BOMB_BYTES = 64 * 1024 * 1024
MAX_GROWTH_BYTES = 16 * 1024 * 1024
CHAT = {"model": QUICK, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}


def exchange(platform: Any, sent: bytes) -> bytes:
    """Send bytes as they are and return all that is answered until the server closes, or says no more."""
    told = b""
    address = (platform.http.base_url.host, platform.http.base_url.port)
    with socket.create_connection(address, timeout=TIMEOUT_SECONDS) as connection:
        try:
            connection.sendall(sent)
            while part := connection.recv(65_536):
                told += part
        except (ConnectionResetError, BrokenPipeError, TimeoutError):
            pass
    return told


def request(customer: Any, target: str, *lines: str, body: bytes = b"", method: str = "POST") -> bytes:
    head = [
        f"{method} {target} HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {customer.key}",
        "Connection: close",
    ]
    return "\r\n".join([*head, "Content-Type: application/json", *lines, "", ""]).encode() + body


def metered(customer: Any) -> bytes:
    """A request that is charged, if ever it is read as one."""
    body = json.dumps(CHAT).encode()
    return request(customer, "/v1/chat/completions", f"Content-Length: {len(body)}", body=body)


AMBIGUOUS = {
    "a length and chunks": ("Content-Length: 4", "Transfer-Encoding: chunked"),
    "chunks and a length": ("Transfer-Encoding: chunked", "Content-Length: 5"),
    "two lengths": ("Content-Length: 0", "Content-Length: 5"),
    "two encodings": ("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
    "an encoding in disguise": ("Content-Length: 0", "Transfer-Encoding: xchunked"),
    "a name with a space": ("Content-Length: 0", "Transfer-Encoding : chunked"),
    "a length with a sign": ("Content-Length: +0",),
    "a folded header": ("X-Folded: a", " Content-Length: 0"),
}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/nowhere"])
@pytest.mark.parametrize("case", AMBIGUOUS)
def test_no_request_is_smuggled_inside_another(platform: Any, customer: Any, case: str, path: str) -> None:
    before = customer.settled_books()
    hidden = metered(customer)
    told = exchange(platform, request(customer, path, *AMBIGUOUS[case], body=b"0\r\n\r\n" + hidden))
    assert told.startswith(b"HTTP/1.1 400 "), told
    assert told.count(b"HTTP/1.1 ") == 1
    assert customer.settled_books() == before


def test_what_follows_the_last_chunk_is_no_header_of_the_request(platform: Any, customer: Any) -> None:
    stranger = platform.customer()
    body = json.dumps(CHAT).encode()
    chunked = b"%x\r\n%b\r\n0\r\n" % (len(body), body)
    trailers = f"Authorization: Bearer {stranger.key}\r\nX-Customer-Id: {stranger.id}\r\n\r\n".encode()
    told = exchange(
        platform,
        request(customer, "/v1/chat/completions", "Transfer-Encoding: chunked", body=chunked + trailers),
    )
    assert stranger.settled_books().entries == 1  # its grant
    assert b"HTTP/1.1 200" not in told or customer.settled_books().entries == 2


@pytest.mark.parametrize("path", METERED)
@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("x-gzip", gzip.compress),
        ("gzip, gzip", gzip.compress),
    ],
)
def test_a_small_body_does_not_become_a_large_one(
    platform: Any, customer: Any, path: str, encoding: str, pack: Any
) -> None:
    packed = pack(b" " * BOMB_BYTES)
    assert len(packed) < BOMB_BYTES // 500
    processes = [psutil.Process(pid) for pid in platform.gateway_pids()]
    before = [process.memory_info().rss for process in processes]
    refused = customer.post(path, content=packed, headers={"Content-Encoding": encoding} | _JSON)
    assert (refused.status_code, refused.json()["error"]["code"]) == (415, "unsupported_media_type")
    after = [process.memory_info().rss for process in processes]
    assert all(now - then < MAX_GROWTH_BYTES for then, now in zip(before, after, strict=True))


_JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("path", METERED)
def test_a_head_without_measure_is_refused_and_no_other_request_suffers(
    platform: Any, customer: Any, path: str
) -> None:
    lines = [f"X-{number}: {'a' * 4_000}" for number in range(512)]
    told = exchange(platform, request(customer, path, *lines, "Content-Length: 2", body=b"{}"))
    assert told.startswith(b"HTTP/1.1 431 ") or not told, told
    assert customer.post("/v1/chat/completions", json=CHAT).status_code == 200


TRICKS = (
    "{0}/", "/{0}", "{0}//", "/.{0}", "/v1/..{0}", "/x/..{0}", "{0}/.", "{0}/../embeddings", "{0};a=1", "{0}%00",
    "{0}%20", "{0}%2f", "{0}\\", "/v1\\{1}", "/V1/{1}", "/%2e{0}", "/v1/%2e%2e{0}", "/v1%252f{1}", "{0}%3fa=b",
)  # fmt: skip
"""Around a path: {0} is it, {1} what follows `/v1/`."""


@pytest.mark.parametrize("path", METERED)
@pytest.mark.parametrize("trick", TRICKS)
def test_a_path_that_is_nearly_the_meters_leads_nowhere(
    platform: Any, customer: Any, path: str, trick: str
) -> None:
    target = trick.format(path, path.removeprefix("/v1/"))
    told = exchange(platform, request(customer, target, "Content-Length: 2", body=b"{}"))
    assert told.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 400 ")), told
    if told.startswith(b"HTTP/1.1 404 "):
        assert b'"unknown_url"' in told


@pytest.mark.parametrize("path", METERED)
@pytest.mark.parametrize(
    "target", ["http://x{0}", "http://elsewhere.example{0}", "{0}?a=b", "{0}#a", "/v1/%{2:02x}{3}"]
)
def test_the_same_path_written_otherwise_is_the_meters_own(
    platform: Any, customer: Any, path: str, target: str
) -> None:
    name = path.removeprefix("/v1/")
    sent = target.format(path, name, ord(name[0]), name[1:])
    told = exchange(platform, request(customer, sent, "Content-Length: 2", body=b"{}"))
    assert told.startswith(b"HTTP/1.1 400 "), told
    assert b'"missing_required_parameter"' in told


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "TRACK", "DEBUG", "PROPFIND", "PRI"])
@pytest.mark.parametrize("target", ["/v1/chat/completions", "/v1/models", "x:80", "http://169.254.169.254/"])
def test_no_other_method_does_anything(platform: Any, customer: Any, method: str, target: str) -> None:
    before = customer.settled_books()
    told = exchange(platform, request(customer, target, method=method))
    assert told.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 404 ", b"HTTP/1.1 405 ")) or not told, told
    assert customer.key.encode() not in told
    assert customer.settled_books() == before


@pytest.mark.parametrize("lines", [("Upgrade: websocket",), ("Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQ")])
def test_an_upgrade_is_not_taken_and_the_request_is_metered_as_it_is(
    platform: Any, customer: Any, lines: tuple[str, ...]
) -> None:
    body = json.dumps(CHAT).encode()
    before = customer.settled_books()
    told = exchange(
        platform,
        request(
            customer,
            "/v1/chat/completions",
            "Connection: Upgrade",
            *lines,
            f"Content-Length: {len(body)}",
            body=body,
        ),
    )
    assert b"HTTP/1.1 101" not in told
    after = customer.settled_books()
    assert after.entries - before.entries == (1 if told.startswith(b"HTTP/1.1 200") else 0)
