"""Connections to engines: an answer is heard whole however its bytes come, and only what may be kept is kept."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from unittest.mock import Mock

import pytest

from darktree_gateway.connections import (
    Answer,
    Broken,
    Connection,
    Connections,
    CutOff,
    NotConnected,
    Origin,
    Stale,
)

HEADERS = {"Content-Type": "application/json", "X-Request-Id": "req_1"}
BODY = b"Predictable GPU inference spend."
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
CHUNKED = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    b"c\r\nPredictable \r\n4;note=x\r\nGPU \r\n10\r\ninference spend.\r\n0\r\n\r\n"
)
HINT = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
UNTIL_CLOSED = b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n" + BODY
SPLITS_TRIED = 60

# What an engine does with one connection, the first of which is number 0.
Script = Callable[[int, "Peer"], Coroutine[Any, Any, None]]


class Peer:
    """The engine's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(self) -> tuple[bytes, bytes]:
        """Return the head and the body of the next request."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return head, await self.reader.readexactly(length)

    async def say(self, *pieces: bytes) -> None:
        """Send pieces, each so that it arrives by itself."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)

    async def left(self) -> None:
        """Return once the gateway has closed the connection."""
        with suppress(ConnectionError):
            while await self.reader.read(65536):
                pass


@asynccontextmanager
async def engine(script: Script, **options: Any) -> AsyncIterator[tuple[str, Connections]]:
    """Serve a script; yields its address and connections to it. What the script raises fails the test."""
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

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    asked = Connections(**({"idle_seconds": 30.0} | options))
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/completions", asked
    finally:
        await asked.close()
        server.close()
        await asyncio.gather(*serving)


async def whole(answer: Answer) -> bytes:
    content = bytearray()
    while part := await answer.read():
        content += part
    return bytes(content)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges) if start < end]


def splits_of(data: bytes) -> list[list[bytes]]:
    """Every cut in two, every byte by itself, and many cuts at random."""
    chance = random.Random(data)
    several = [sorted(chance.sample(range(1, len(data)), 5)) for _ in range(SPLITS_TRIED)]
    return [[*cut(data, [place])] for place in range(1, len(data))] + [
        cut(data, list(range(1, len(data)))),
        *(cut(data, places) for places in several),
    ]


@pytest.mark.parametrize(
    "data", [PLAIN, CHUNKED, HINT + CONTINUE + CHUNKED], ids=["plain", "chunked", "hints"]
)
async def test_an_answer_is_the_same_wherever_its_bytes_are_cut(data: bytes) -> None:
    ways = splits_of(data)

    async def script(number: int, peer: Peer) -> None:
        assert number == 0, "a whole answer leaves the connection usable"
        for pieces in ways:
            await peer.request()
            await peer.say(*pieces)
        await peer.left()

    async with engine(script) as (url, asked):
        for _ in ways:
            answer = await asked.ask(url, "POST", HEADERS, b"{}")
            assert (answer.status, await whole(answer)) == (200, BODY)


@pytest.mark.parametrize("data", [PLAIN, CHUNKED], ids=["plain", "chunked"])
async def test_what_is_passed_on_as_it_comes_is_the_same_as_what_is_read(data: bytes) -> None:
    ways = splits_of(data)

    async def script(number: int, peer: Peer) -> None:
        for pieces in ways:
            await peer.request()
            await peer.say(*pieces)
        await peer.left()

    async with engine(script) as (url, asked):
        for way in range(len(ways)):
            answer, heard = await asked.ask(url, "POST", HEADERS, b"{}"), bytearray()
            stops = iter([False, True, False] if way % 2 else [])

            def take(part: bytes, heard: bytearray = heard, stops: Iterator[bool] = stops) -> bool:
                heard += part
                return next(stops, True)

            while part := await answer.read():
                heard += part
                await answer.pass_on(take)
            assert bytes(heard) == BODY


async def test_who_takes_may_fail_and_an_answer_that_breaks_off_is_for_the_reader_to_learn() -> None:
    async def script(number: int, peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED[:-30])
        await peer.left()

    def fail(part: bytes) -> bool:
        raise ValueError(part)

    async with engine(script) as (url, asked):
        answer = await asked.ask(url, "POST", HEADERS)
        with pytest.raises(ValueError, match="Predictable"):
            await answer.pass_on(fail)
        answer.close()
    heard: list[bytes] = []

    def take(part: bytes) -> bool:
        heard.append(part)
        return True

    async def half(number: int, peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED[:-30])

    async with engine(half) as (url, asked):
        answer = await asked.ask(url, "POST", HEADERS)
        await answer.pass_on(take)
        assert BODY.startswith(b"".join(heard))
        assert heard
        with pytest.raises(Broken):
            await answer.read()


async def test_a_request_is_said_as_http_and_reaches_the_engine_in_one_piece() -> None:
    heard: list[tuple[bytes, bytes]] = []

    async def script(number: int, peer: Peer) -> None:
        heard.append(await peer.request())
        await peer.say(PLAIN)
        await peer.left()

    async with engine(script) as (url, asked):
        answer = await asked.ask(url, "POST", HEADERS, b'{"prompt": "x"}')
        assert await whole(answer) == BODY
    head, body = heard[0]
    host = url.split("/")[2]
    assert head.decode().split("\r\n")[:-2] == [
        "POST /v1/completions HTTP/1.1",
        f"Host: {host}",
        "Content-Type: application/json",
        "X-Request-Id: req_1",
        "Content-Length: 15",
    ]
    assert body == b'{"prompt": "x"}'


async def test_a_header_cannot_bring_a_line_of_its_own() -> None:
    asked = Connections(idle_seconds=1.0)
    with pytest.raises(AssertionError):
        await asked.ask("http://127.0.0.1:1/", "POST", {"X-Request-Id": "a\r\nX-Other: b"})


async def test_an_answer_without_a_length_ends_with_its_connection_and_is_not_kept() -> None:
    async def script(number: int, peer: Peer) -> None:
        await peer.request()
        await peer.say(UNTIL_CLOSED[:-5], UNTIL_CLOSED[-5:])

    async with engine(script) as (url, asked):
        for _ in range(2):
            assert await whole(await asked.ask(url, "POST", HEADERS)) == BODY


@pytest.mark.parametrize(
    "data", [PLAIN[:-1], CHUNKED[:-5], CHUNKED[:-30]], ids=["length", "last chunk", "chunk"]
)
async def test_an_answer_that_breaks_off_gives_what_came_and_then_says_so(data: bytes) -> None:
    async def script(number: int, peer: Peer) -> None:
        await peer.request()
        await peer.say(data)

    async with engine(script) as (url, asked):
        answer = await asked.ask(url, "POST", HEADERS)
        first = await answer.read()
        assert BODY.startswith(first)
        with pytest.raises(Broken):
            await whole(answer)


@pytest.mark.parametrize("data", [b"", PLAIN[:10], HINT], ids=["nothing", "half a head", "a hint"])
async def test_a_connection_closed_before_its_answer_is_told_from_one_that_breaks_inside(data: bytes) -> None:
    async def script(number: int, peer: Peer) -> None:
        await peer.request()
        await peer.say(data)

    async with engine(script) as (url, asked):
        with pytest.raises(CutOff):
            await asked.ask(url, "POST", HEADERS)


async def test_what_is_no_http_is_refused() -> None:
    async def script(number: int, peer: Peer) -> None:
        await peer.request()
        await peer.say(
            (b"SSH-2.0-other\r\n", b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")[
                number
            ]
        )
        await peer.left()

    async with engine(script) as (url, asked):
        for _ in range(2):
            with pytest.raises(Broken):
                await asked.ask(url, "POST", HEADERS)


async def test_a_head_without_an_end_is_cut() -> None:
    async def script(number: int, peer: Peer) -> None:
        await peer.request()
        with suppress(ConnectionError):
            await peer.say(b"HTTP/1.1 200 OK\r\n", *[b"x-more: " + b"y" * 1000 + b"\r\n"] * 400)
            await peer.left()

    async with engine(script) as (url, asked):
        with pytest.raises(Broken):
            await asked.ask(url, "POST", HEADERS)


async def test_an_answer_that_nobody_asked_for_is_never_another_requests() -> None:
    async def script(number: int, peer: Peer) -> None:
        await peer.request()
        await peer.say(PLAIN + (PLAIN.replace(b"GPU", b"TPU") if number == 0 else b""))
        await peer.left()

    async with engine(script) as (url, asked):
        for _ in range(2):
            assert await whole(await asked.ask(url, "POST", HEADERS)) == BODY


async def test_a_kept_connection_that_the_engine_closed_is_not_used_again() -> None:
    closed = asyncio.Event()

    async def script(number: int, peer: Peer) -> None:
        await peer.request()
        await peer.say(PLAIN)
        if number == 0:
            peer.writer.close()
            await peer.writer.wait_closed()
            closed.set()
        else:
            await peer.left()

    async with engine(script) as (url, asked):
        assert await whole(await asked.ask(url, "POST", HEADERS)) == BODY
        await closed.wait()
        await asyncio.to_thread(lambda: None)  # the loop has heard of it
        assert await whole(await asked.ask(url, "POST", HEADERS)) == BODY


async def test_a_fresh_connection_passes_by_those_that_were_kept() -> None:
    async def script(number: int, peer: Peer) -> None:
        await peer.request()
        await peer.say(PLAIN)
        if number == 0:
            await peer.request()  # meets its closing: no answer ever comes
        else:
            await peer.left()

    async with engine(script) as (url, asked):
        assert await whole(await asked.ask(url, "POST", HEADERS)) == BODY
        with pytest.raises(Stale):
            await asked.ask(url, "POST", HEADERS)
        assert await whole(await asked.ask(url, "POST", HEADERS, fresh=True)) == BODY


async def test_leaving_an_answer_before_its_end_closes_the_connection_at_once() -> None:
    left = asyncio.Event()

    async def script(number: int, peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED[:-5])
        await peer.left()
        left.set()

    async with engine(script) as (url, asked):
        answer = await asked.ask(url, "POST", HEADERS)
        assert await answer.read()
        answer.close()
        await asyncio.wait_for(left.wait(), 5)


async def test_an_ask_that_is_cancelled_closes_its_connection() -> None:
    left, heard = asyncio.Event(), asyncio.Event()

    async def script(number: int, peer: Peer) -> None:
        await peer.request()
        heard.set()
        await peer.left()
        left.set()

    async with engine(script) as (url, asked):
        task = asyncio.create_task(asked.ask(url, "POST", HEADERS))
        await heard.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(left.wait(), 5)


@pytest.mark.parametrize("said", [b"", CHUNKED[:-5]], ids=["before the answer", "inside it"])
async def test_an_engine_that_falls_silent_has_failed(said: bytes) -> None:
    async def script(number: int, peer: Peer) -> None:
        await peer.request()
        await peer.say(said)
        await peer.left()

    async with engine(script, idle_seconds=0.2) as (url, asked):
        with pytest.raises(Broken, match="silent"):
            await whole(await asked.ask(url, "POST", HEADERS))


async def test_a_reader_who_takes_his_time_holds_the_engine_back_and_loses_nothing() -> None:
    piece = b"%x\r\n%b\r\n" % (64 * 1024, b"z" * 64 * 1024)
    pieces = 200
    sent = 0

    async def script(number: int, peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        peer.writer.transport.set_write_buffer_limits(0)
        await peer.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(pieces):
            await peer.say(piece)
            sent += 1
        await peer.say(b"0\r\n\r\n")
        await peer.left()

    async with engine(script) as (url, asked):
        answer = await asked.ask(url, "POST", HEADERS)
        (connection,) = asked._all
        before = -1
        # Until the engine can send no more.
        while sent < pieces and (sent != before or not connection._paused):
            before = sent
            await asyncio.sleep(0.1)
        assert sent < pieces
        # Silent for too long, were it not the reader's doing.
        connection.look(connection.heard_at + 60, 30.0, 4.0)
        assert len(await whole(answer)) == pieces * 64 * 1024


@pytest.mark.parametrize(
    "url",
    [
        "ftp://engine/",
        "http://",
        "http://user@engine/",
        "http://en gine/",
        "http://engine/ü",
        "http://127.0.0.1:1/",
    ],
)
async def test_an_engine_that_cannot_be_reached_was_not_asked(url: str) -> None:
    with pytest.raises(NotConnected):
        await Connections(idle_seconds=1.0).ask(url, "POST", HEADERS)


async def test_a_connection_that_took_long_to_make_is_not_taken_for_an_idle_one() -> None:
    connection = Connection(Connections(idle_seconds=30.0), Origin("engine", 443, True, "engine"))
    made_at = asyncio.get_running_loop().time()
    connection.connection_made(Mock(spec=asyncio.Transport))
    assert connection.heard_at >= made_at


async def test_a_kept_connection_is_closed_before_the_engine_would() -> None:
    left = asyncio.Event()

    async def script(number: int, peer: Peer) -> None:
        await peer.request()
        await peer.say(PLAIN)
        await peer.left()
        left.set()

    async with engine(script, keep_alive_seconds=0.1) as (url, asked):
        assert await whole(await asked.ask(url, "POST", HEADERS)) == BODY
        await asyncio.wait_for(left.wait(), 5)
