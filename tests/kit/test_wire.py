"""Clients that send too much, too slowly, or what two servers would read differently, harm nobody."""

import asyncio
import gc
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from typing import ClassVar

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from darktree_kit import server
from darktree_kit.wire import BoundedProtocol

READ_SECONDS = 0.2
MAX_HEAD_BYTES = 8_192
DEADLINE_SECONDS = 10.0
PART_BYTES = 100_000
FLOOD_PARTS = 400
TARGET = b"POST /first HTTP/1.1\r\nHost: a\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


class Known(BoundedProtocol):
    """The same with bounds that a test can reach, and found by its client's address."""

    max_head_bytes = MAX_HEAD_BYTES
    look_seconds = 0.05
    by_client: ClassVar[dict[tuple[str, int], "Known"]] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        assert self.client is not None
        self.by_client[self.client] = self


class Echo:
    """Answers with the body's length, and knows which paths were asked."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.names: set[bytes] = set()
        self.answers = {"/chunks": self._speak, "/split": self._split, "/flood": self._flood}
        self.said: list[bool] = []
        self.cycles: list[weakref.ref[object]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.paths.append(scope["path"])
        self.cycles.append(weakref.ref(scope["state"]["say"].__self__))
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.paths.append("left")
                return
            size += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        self.names |= {name for name, _ in scope["headers"]}
        if scope["path"] == "/watched":
            await self._watch(scope)
            return
        if scope["path"] in self.answers:
            await self.answers[scope["path"]](scope, send)
            return
        if scope["path"] == "/slow":
            known = Known.by_client[scope["client"]]
            known.read_seconds = READ_SECONDS
            await asyncio.sleep(3 * READ_SECONDS)
            known.read_seconds = BoundedProtocol.read_seconds
        content = str(size).encode()
        length = (b"content-length", str(len(content)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": content})

    async def _speak(self, scope: Scope, send: Send) -> None:
        """Say parts at once, before there is anything to go on with, while there is, and when all is said."""
        say = scope["state"]["say"]
        self.said = [say(b"too early")]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        self.said += [say(b"bc"), say(b"def")]
        await send({"type": "http.response.body", "body": b"g"})
        self.said.append(say(b"too late"))

    async def _split(self, scope: Scope, send: Send) -> None:
        """Try to say a header inside a header; what the query says."""
        value = b"a\r\nx-other: b" if scope["query_string"] == b"line" else b"a\0b"
        headers = [(b"content-length", b"2"), (b"x-said", value)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    async def _flood(self, scope: Scope, send: Send) -> None:
        """Say so much that the client has to be waited for; then wait for it."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        self.said = [scope["state"]["say"](b"x" * PART_BYTES) for _ in range(FLOOD_PARTS)]
        await send({"type": "http.response.body", "body": b"y"})

    async def _watch(self, scope: Scope) -> None:
        """Wait to be told twice that the client has left: while it is there, and when it has gone already."""
        for told in ("told", "told again"):
            left = asyncio.Event()
            unwatch = scope["state"]["when_left"](left.set)
            await left.wait()
            unwatch()
            self.paths.append(told)


@pytest.fixture(scope="module")
def echo() -> Echo:
    return Echo()


@pytest.fixture(scope="module")
def port(echo: Echo) -> Iterator[int]:
    listener = server.listen("127.0.0.1", 0)
    running = uvicorn.Server(uvicorn.Config(echo, log_config=None, http=Known, lifespan="off"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    running.should_exit = True
    thread.join(DEADLINE_SECONDS)
    listener.close()


@pytest.fixture
def connection(port: int, echo: Echo) -> Iterator[socket.socket]:
    echo.paths.clear()
    Known.by_client.clear()
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_SECONDS) as made:
        yield made


def hurry(connection: socket.socket, *, in_head: bool) -> None:
    """Let the server wait but briefly for the rest, once it has read so far; until then we may be slow ourselves."""
    until = time.monotonic() + DEADLINE_SECONDS
    while (known := Known.by_client.get(connection.getsockname())) is None or known._in_head != in_head:
        assert time.monotonic() < until
    known.read_seconds = READ_SECONDS


def rest_of(connection: socket.socket) -> bytes:
    """Return what comes until the server closes the connection."""
    told = b""
    try:
        while part := connection.recv(65_536):
            told += part
    except ConnectionResetError:
        pass
    return told


def answer_of(connection: socket.socket) -> bytes:
    told = b""
    while b"\r\n\r\n" not in told:
        part = connection.recv(65_536)
        assert part, told
        told += part
    return told


def test_an_ordinary_request_and_the_next_on_its_connection_are_answered(connection: socket.socket) -> None:
    for _ in range(2):
        connection.sendall(TARGET + b"Content-Length: 3\r\n\r\nabc")
        assert answer_of(connection).startswith(b"HTTP/1.1 200")


def test_a_client_that_leaves_is_told_of_without_waiting_for_it(
    connection: socket.socket, echo: Echo
) -> None:
    size = 40 * MAX_HEAD_BYTES  # so large that reading pauses meanwhile
    request = b"POST /watched HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size
    connection.sendall(request + b"a" * size)
    until = time.monotonic() + DEADLINE_SECONDS
    while echo.paths != ["/watched"]:
        assert time.monotonic() < until
    connection.close()
    while echo.paths != ["/watched", "told", "told again"]:
        assert time.monotonic() < until, echo.paths


def test_a_head_without_an_end_is_refused(connection: socket.socket, echo: Echo) -> None:
    connection.sendall(TARGET)
    told = b""
    try:
        for _ in range(400):
            connection.sendall(b"X-Large: " + b"a" * 1_000 + b"\r\n")
    except OSError:
        pass
    told = rest_of(connection)
    assert told.startswith(b"HTTP/1.1 431") or not told  # a reset may overtake the answer
    assert echo.paths == []


def test_a_large_body_is_no_large_head(connection: socket.socket) -> None:
    size = 40 * MAX_HEAD_BYTES
    connection.sendall(TARGET + b"Content-Length: %d\r\n\r\n" % size + b"a" * size)
    assert str(size).encode() in answer_of(connection)


@pytest.mark.parametrize("sent", [TARGET, b"P", TARGET + b"X: "])
def test_a_head_that_does_not_come_is_not_waited_for(
    connection: socket.socket, echo: Echo, sent: bytes
) -> None:
    connection.sendall(sent)
    hurry(connection, in_head=True)
    assert rest_of(connection).startswith(b"HTTP/1.1 408")
    assert echo.paths == []


def test_a_head_that_comes_a_byte_at_a_time_is_not_waited_for(connection: socket.socket) -> None:
    connection.sendall(TARGET)
    hurry(connection, in_head=True)
    connection.settimeout(0.02)
    until, told = time.monotonic() + DEADLINE_SECONDS, b""
    while not told:
        assert time.monotonic() < until
        try:
            connection.sendall(b"X")
            told = connection.recv(100)
        except TimeoutError:
            continue
        except OSError:
            break
    assert told.startswith(b"HTTP/1.1 408") or not told


def test_a_connection_that_says_nothing_is_closed(connection: socket.socket) -> None:
    hurry(connection, in_head=False)
    assert rest_of(connection) == b""


def test_a_body_that_does_not_come_is_a_client_that_left(connection: socket.socket, echo: Echo) -> None:
    connection.sendall(TARGET + b"Content-Length: 10\r\n\r\nabc")
    until = time.monotonic() + DEADLINE_SECONDS
    while echo.paths != ["/first"]:
        assert time.monotonic() < until
    hurry(connection, in_head=False)
    assert rest_of(connection) == b""
    while echo.paths != ["/first", "left"]:
        assert time.monotonic() < until


def test_a_slow_answer_and_who_waits_behind_it_are_not_cut(connection: socket.socket, echo: Echo) -> None:
    connection.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n" + SMUGGLED[:20])
    assert answer_of(connection).startswith(b"HTTP/1.1 200")
    connection.sendall(SMUGGLED[20:])
    assert answer_of(connection).startswith(b"HTTP/1.1 200")
    assert echo.paths == ["/slow", "/smuggled"]


AMBIGUOUS = {
    "a length and chunks": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED),
    "a list of lengths": b"Content-Length: 0, %d\r\n\r\n" % len(SMUGGLED),
    "a length with a sign": b"Content-Length: +%d\r\n\r\n" % len(SMUGGLED),
    "a negative length": b"Content-Length: -1\r\n\r\n",
    "a length in hexadecimal": b"Content-Length: 0x0\r\n\r\n",
    "a length past 64 bits": b"Content-Length: 18446744073709551616\r\n\r\n",
    "a name with a space": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a name that begins with a space": b" Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "an unknown encoding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunks not last": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "a chunk's size with a sign": b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    "a chunk's size past 64 bits": b"Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n",
    "a line ended by a return alone": b"X: a\rContent-Length: 0\r\n\r\n",
    "a nought in a value": b"X: a\0b\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_two_servers_could_read_differently_is_refused_and_smuggles_nothing(
    connection: socket.socket, echo: Echo, case: str
) -> None:
    connection.sendall(TARGET + AMBIGUOUS[case] + SMUGGLED)
    told = rest_of(connection)
    assert told.startswith(b"HTTP/1.1 400"), told
    assert told.count(b"HTTP/1.1") == 1
    assert "/smuggled" not in echo.paths


def test_what_follows_the_last_chunk_is_no_header(connection: socket.socket, echo: Echo) -> None:
    chunks = b"1\r\na\r\n0\r\nAuthorization: Bearer x\r\nX-Trailer: y\r\n\r\n"
    connection.sendall(TARGET + b"X-Header: z\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    assert answer_of(connection).startswith(b"HTTP/1.1 200")
    assert b"x-header" in echo.names
    assert not echo.names & {b"authorization", b"x-trailer"}


def test_the_bounds_of_the_services_let_ordinary_clients_through() -> None:
    assert (BoundedProtocol.max_head_bytes, BoundedProtocol.read_seconds) == (65_536, 60.0)


def test_parts_said_at_once_are_chunks_of_the_answer_where_it_goes_on(
    connection: socket.socket, echo: Echo
) -> None:
    connection.sendall(b"GET /chunks HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    head, _, body = rest_of(connection).partition(b"\r\n\r\n")
    assert head.lower().count(b"connection: close") == 1
    assert body == b"1\r\na\r\n2\r\nbc\r\n3\r\ndef\r\n1\r\ng\r\n0\r\n\r\n"
    assert echo.said == [False, True, True, False]


def test_a_client_that_does_not_keep_up_is_waited_for_and_loses_nothing(
    connection: socket.socket, echo: Echo
) -> None:
    echo.said = []
    connection.sendall(b"GET /flood HTTP/1.1\r\nHost: a\r\n\r\n")
    until = time.monotonic() + DEADLINE_SECONDS
    while len(echo.said) < FLOOD_PARTS:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert echo.said[0] is True
    assert echo.said[-1] is False
    told = b""
    while not told.endswith(b"1\r\ny\r\n0\r\n\r\n"):
        part = connection.recv(1_000_000)
        assert part
        told += part
    assert told.count(b"x") == PART_BYTES * sum(echo.said)


@pytest.mark.parametrize("what", ["line", "nought"])
def test_an_answers_header_cannot_bring_a_line_of_its_own(connection: socket.socket, what: str) -> None:
    connection.sendall(b"GET /split?%b HTTP/1.1\r\nHost: a\r\n\r\n" % what.encode())
    told = rest_of(connection)
    assert b"x-other" not in told
    assert b"ok" not in told


def test_the_head_of_an_answer_to_head_comes_alone(connection: socket.socket) -> None:
    connection.sendall(b"HEAD /first HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    told = rest_of(connection)
    assert told.startswith(b"HTTP/1.1 200")
    assert told.endswith(b"content-length: 1\r\n\r\n")


def test_a_request_that_was_answered_is_gone_without_the_garbage_collector(
    connection: socket.socket, echo: Echo
) -> None:
    echo.cycles.clear()
    gc.disable()
    try:
        for _ in range(3):
            connection.sendall(TARGET + b"Content-Length: 3\r\n\r\nabc")
            answer_of(connection)
        until = time.monotonic() + DEADLINE_SECONDS
        while [cycle() for cycle in echo.cycles[:2]] != [None, None]:
            assert time.monotonic() < until
    finally:
        gc.enable()
