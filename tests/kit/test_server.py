"""Clients that come all at once are let in soon, and nobody once the server has left."""

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
