"""Clients that come all at once are let in soon, the last at the very end, and nobody once the server has left."""

import asyncio
import socket

import pytest
import uvloop
from fastapi import FastAPI

from darktree_kit import server
from darktree_kit.wire import BoundedProtocol

CLIENTS = 64
MAX_TURNS = 8
DEADLINE_SECONDS = 10


def test_clients_that_come_at_once_are_let_in_by_few_turns_of_the_loop() -> None:
    listener = server.listen("127.0.0.1", 0)
    address = listener.getsockname()
    clients = [socket.create_connection(address) for _ in range(CLIENTS)]
    try:
        turns = uvloop.run(_turns_at_which_they_are_let_in(listener))
    finally:
        for client in clients:
            client.close()
    assert len(turns) == CLIENTS
    assert len(set(turns)) <= MAX_TURNS
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


async def _turns_at_which_they_are_let_in(listener: socket.socket) -> list[int]:
    """Serve until all are connected, then leave; return the turn of the loop at which each was let in."""
    loop = asyncio.get_running_loop()
    turn = 0
    let_in: list[int] = []

    def count() -> None:
        nonlocal turn
        turn += 1
        loop.call_soon(count)

    class Counting(BoundedProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            let_in.append(turn)

    count()
    app = FastAPI()
    config = server.configured(app, shutdown_seconds=1)
    config.http = Counting
    running = server.LeavingServer(config, app, 0.0)
    serving = asyncio.create_task(running.serve(sockets=[listener]))
    async with asyncio.timeout(DEADLINE_SECONDS):
        while len(let_in) < CLIENTS:
            await asyncio.sleep(0.01)
        running.should_exit = True
        await serving
    return let_in


class Latecomer:
    """Looks like one of a server's listeners, and is a client that comes while those are closed."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self.socket: socket.socket | None = None

    def close(self) -> None:
        if self.socket is None:
            self.socket = socket.create_connection(self._address, DEADLINE_SECONDS)
            self.socket.sendall(b"GET /nothing HTTP/1.1\r\nHost: here\r\n\r\n")

    async def wait_closed(self) -> None: ...


def test_who_comes_while_the_listeners_are_closed_is_still_answered() -> None:
    listener = server.listen("127.0.0.1", 0)
    latecomer = Latecomer(listener.getsockname())

    async def leave() -> None:
        running = server.LeavingServer(server.configured(FastAPI(), shutdown_seconds=1), FastAPI(), 0.0)
        serving = asyncio.create_task(running.serve(sockets=[listener]))
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not running.started:
                await asyncio.sleep(0.01)
            running.servers.insert(0, latecomer)  # type: ignore[arg-type]
            running.should_exit = True
            await serving

    uvloop.run(leave())
    assert latecomer.socket is not None
    with latecomer.socket as client:
        assert client.recv(1000).startswith(b"HTTP/1.1 404")
