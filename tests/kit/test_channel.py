"""A channel's one connection: kept, replaced when it was closed, and never left in doubt about whose answer comes."""

import asyncio
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from darktree_kit import logs
from darktree_kit.channel import MAX_ANSWER_BYTES, Channel
from darktree_kit.errors import ApiError, Unreachable

TOKEN = "a-token"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"

# What a server does with one connection, the first of which is number 0.
Script = Callable[[int, "Peer"], Coroutine[Any, Any, None]]


class Peer:
    """The other end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def request(self) -> tuple[bytes, bytes]:
        """Return the head and the body of the next request."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return head, await self._reader.readexactly(length)

    async def closed(self) -> None:
        """Return once the channel has closed the connection."""
        with suppress(ConnectionError):
            assert await self._reader.read(1) == b""

    async def answer(self, data: bytes) -> bytes:
        """Read a request, send these bytes and return the request's body."""
        _, body = await self.request()
        self.writer.write(data)
        await self.writer.drain()
        return body


@asynccontextmanager
async def scripted(
    script: Script, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """Serve a script; yields the base URL. What the script raises fails the test."""
    serving: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(serving)
        task = asyncio.current_task()
        assert task is not None
        serving.append(task)
        try:
            await script(number, Peer(reader, writer))
        finally:
            writer.close()

    server = await asyncio.start_server(serve, host, 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    name = f"[{host}]" if ":" in host else host
    try:
        yield f"{'https' if tls else 'http'}://{'localhost' if tls else name}:{port}"
    finally:
        server.close()
        await asyncio.gather(*serving)


@asynccontextmanager
async def channel_to(url: str, **options: Any) -> AsyncIterator[Channel]:
    channel = Channel(url, TOKEN, service="callee", **options)
    try:
        yield channel
    finally:
        await channel.close()


def answer_of(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def test_calls_share_one_connection_of_a_real_server(serve: Callable[[ASGIApp], str]) -> None:
    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = (await receive())["body"]
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        content = orjson.dumps([scope["client"][1], scope["path"], body.decode(), headers])
        await send({"type": "http.response.start", "status": 200, "headers": []})  # so in chunks
        await send({"type": "http.response.body", "body": content[:9], "more_body": True})
        await send({"type": "http.response.body", "body": content[9:]})

    token = logs.request_id.set("req_1")
    try:
        async with channel_to(serve(echo) + "/below/") as channel:
            answers = [orjson.loads(await channel.post("/v1/things", b"%d" % number)) for number in range(3)]
    finally:
        logs.request_id.reset(token)
    assert len({port for port, *_ in answers}) == 1
    assert [(path, body) for _, path, body, _ in answers] == [("/below/v1/things", str(n)) for n in range(3)]
    headers = answers[0][3]
    assert headers["authorization"] == f"Bearer {TOKEN}"
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"] == "req_1"


async def test_an_idle_connection_that_the_server_closed_is_replaced() -> None:
    async def script(number: int, peer: Peer) -> None:
        await peer.answer(answer_of(b"%d" % number))

    async with scripted(script) as url, channel_to(url) as channel:
        assert [await channel.post("/", b"{}") for _ in range(3)] == [b"0", b"1", b"2"]


async def test_a_request_that_met_the_closing_of_a_kept_connection_is_sent_again_once() -> None:
    asked: list[bytes] = []

    async def script(number: int, peer: Peer) -> None:
        if number == 0:
            asked.append(await peer.answer(answer_of(b"first")))
        asked.append((await peer.request())[1])
        if number == 2:
            peer.writer.write(answer_of(b"third"))

    async with scripted(script) as url, channel_to(url) as channel:
        assert await channel.post("/", b"1") == b"first"
        with pytest.raises(Unreachable, match="ConnectionResetError"):
            await channel.post("/", b"2")  # and the connection that replaces the kept one breaks as well
        assert await channel.post("/", b"3") == b"third"
    assert asked == [b"1", b"2", b"2", b"3"]


async def test_a_connection_that_breaks_in_the_middle_of_an_answer_is_not_asked_again() -> None:
    asked: list[bytes] = []

    async def script(number: int, peer: Peer) -> None:
        asked.append(await peer.answer(answer_of(b"ok")))
        asked.append(await peer.answer(HEAD + b"h"))

    async with scripted(script) as url, channel_to(url) as channel:
        await channel.post("/", b"1")
        with pytest.raises(Unreachable):
            await channel.post("/", b"2")
    assert asked == [b"1", b"2"]


async def test_a_refusal_arrives_as_it_was_raised_and_keeps_the_connection() -> None:
    error = {
        "message": "Another body.",
        "type": "invalid_request_error",
        "code": "differs",
        "param": "amount",
    }
    content = orjson.dumps({"error": error})

    async def script(number: int, peer: Peer) -> None:
        await peer.answer(b"HTTP/1.1 409 Conflict\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
        await peer.answer(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nbad")
        await peer.answer(answer_of(b"%d" % number))

    async with scripted(script) as url, channel_to(url) as channel:
        with pytest.raises(ApiError) as refused:
            await channel.post("/", b"{}")
        with pytest.raises(Unreachable, match="502"):
            await channel.post("/", b"{}")
        assert await channel.post("/", b"{}") == b"0"
    found = refused.value
    assert (found.answer_status, found.answer_code, found.param, found.message) == (
        409, "differs", "amount", "Another body.",
    )  # fmt: skip


async def test_silence_is_unreachable_within_the_timeout_and_its_late_answer_is_nobodys() -> None:
    async def script(number: int, peer: Peer) -> None:
        await peer.answer(answer_of(b"%d" % number))
        if number == 0:
            await peer.request()
            await peer.closed()

    async with scripted(script) as url, channel_to(url) as channel:
        assert await channel.post("/", b"{}") == b"0"
        patience, channel._timeout = channel._timeout, 0.2
        with pytest.raises(Unreachable, match="callee did not answer: TimeoutError"):
            await channel.post("/", b"{}")
        channel._timeout = patience
        assert await channel.post("/", b"{}") == b"1"


async def test_a_call_that_is_cancelled_closes_its_connection() -> None:
    asked = asyncio.Event()

    async def script(number: int, peer: Peer) -> None:
        await peer.request()
        if number == 0:
            asked.set()
            await peer.closed()
        else:
            peer.writer.write(answer_of(b"mine"))

    async with scripted(script) as url, channel_to(url) as channel:
        call = asyncio.create_task(channel.post("/", b"{}"))
        await asked.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await channel.post("/", b"{}") == b"mine"


async def test_concurrent_callers_take_turns_and_each_gets_its_own_answer() -> None:
    async def script(number: int, peer: Peer) -> None:
        assert number == 0, "a second connection"
        for _ in range(50):
            _, body = await peer.request()
            peer.writer.write(answer_of(body))

    async with scripted(script) as url, channel_to(url) as channel:
        bodies = [b"%d" % number for number in range(50)]
        assert await asyncio.gather(*(channel.post("/", body) for body in bodies)) == bodies


async def test_an_answer_that_nobody_asked_for_is_never_taken_for_the_next() -> None:
    async def script(number: int, peer: Peer) -> None:
        await peer.answer(answer_of(b"%d" % number) + (answer_of(b"stray") if number == 0 else b""))
        await peer.closed()

    async with scripted(script) as url, channel_to(url) as channel:
        assert [await channel.post("/", b"{}") for _ in range(2)] == [b"0", b"1"]


async def test_an_interim_answer_is_not_the_answer() -> None:
    async def script(number: int, peer: Peer) -> None:
        await peer.answer(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + answer_of(b"final"))

    async with scripted(script) as url, channel_to(url) as channel:
        assert await channel.post("/", b"{}") == b"final"


async def test_an_answer_that_ends_the_connection_is_the_last_on_it() -> None:
    async def script(number: int, peer: Peer) -> None:
        await peer.answer(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\n%d" % number)
        await peer.closed()

    async with scripted(script) as url, channel_to(url) as channel:
        assert [await channel.post("/", b"{}") for _ in range(2)] == [b"0", b"1"]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"220 mail.example.com ESMTP\r\n", id="another protocol"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", id="a broken chunk"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\nok", id="an answer that does not say where it ends"),
        pytest.param(b"", id="nothing"),
    ],
)
async def test_what_is_not_a_complete_answer_is_unreachable(answer: bytes) -> None:
    async def script(number: int, peer: Peer) -> None:
        await peer.answer(answer)

    async with scripted(script) as url, channel_to(url) as channel:
        with pytest.raises(Unreachable):
            await channel.post("/", b"{}")


@pytest.mark.parametrize("head", [b"X-Long: ", b"Transfer-Encoding: chunked\r\n\r\n1000000\r\n"])
async def test_an_answer_without_an_end_is_given_up(head: bytes) -> None:
    async def script(number: int, peer: Peer) -> None:
        await peer.answer(b"HTTP/1.1 200 OK\r\n" + head)
        try:
            for _ in range(2 * MAX_ANSWER_BYTES // 65536):
                peer.writer.write(b"x" * 65536)
                await peer.writer.drain()
            raise AssertionError("everything was read")
        except ConnectionError:
            pass

    async with scripted(script) as url, channel_to(url) as channel:
        with pytest.raises(Unreachable):
            await channel.post("/", b"{}")


async def test_a_port_where_nobody_listens_is_unreachable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with channel_to(f"http://127.0.0.1:{taken.getsockname()[1]}") as channel:
            with pytest.raises(Unreachable, match="callee did not answer: ConnectionRefusedError"):
                await channel.post("/", b"{}")


async def test_a_service_may_have_an_ipv6_address() -> None:
    hosts: list[bytes] = []

    async def script(number: int, peer: Peer) -> None:
        head, _ = await peer.request()
        hosts.append(head.partition(b"Host: ")[2].partition(b"\r\n")[0])
        peer.writer.write(answer_of(b"ok"))

    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    async with scripted(script, host="::1") as url, channel_to(url) as channel:
        assert await channel.post("/", b"{}") == b"ok"
        assert [b"http://" + host for host in hosts] == [url.encode()]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
async def test_https_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += ["-keyout", str(key), "-out", str(certificate), "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)

    async def script(number: int, peer: Peer) -> None:
        for _ in range(2):
            await peer.answer(answer_of(b"%d" % number))

    async with scripted(script, tls=tls) as url:
        async with channel_to(url) as channel:
            with pytest.raises(Unreachable, match="SSLCertVerificationError"):
                await channel.post("/", b"{}")
        monkeypatch.setitem(os.environ, "SSL_CERT_FILE", str(certificate))
        async with channel_to(url) as channel:
            assert [await channel.post("/", b"{}") for _ in range(2)] == [b"0", b"0"]


@pytest.mark.parametrize(
    "url", ["", "ftp://host", "http://", "http://me@host", "http://a host", "http://host/a b"]
)
def test_a_url_that_names_no_service_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="callee's URL"):
        Channel(url, TOKEN, service="callee")


def test_a_token_that_would_not_be_one_header_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="callee's token"):
        Channel("http://host", "a\r\nX-Other: b", service="callee")
