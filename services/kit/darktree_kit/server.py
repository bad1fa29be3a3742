"""How a service's process runs: uvicorn on sockets that this process opened itself.

Several gateways share one public port (SO_REUSEPORT: the kernel spreads connections over them), and each has a
private port of its own for probes and metrics.

A process that is told to stop leaves in two steps, so that no request fails because it goes. First it is not ready, and
serves on: old connections and new ones, with `Connection: close` on every answer, so that its clients come back to
others. Then it listens no more, closes what is idle, and finishes what is running.
"""

import asyncio
import gc
import socket
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI

from darktree_kit import logs
from darktree_kit.wire import BoundedProtocol

BACKLOG = 2048
ACCEPTS_A_TURN = 16  # new connections that one turn of the event loop takes from a listener
KEEP_ALIVE_SECONDS = 75
SHUTDOWN_SECONDS = 30
GARBAGE_THRESHOLD = 20_000  # new objects between two looks at the youngest


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Return a listening TCP socket; `shared` lets other processes listen on the same port.

    Raises OSError when the address is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((host, port))
    listener.listen(BACKLOG)
    listener.set_inheritable(True)
    return listener


def serve(
    app: FastAPI,
    listeners: Sequence[socket.socket],
    *,
    leaving_seconds: float = 0.0,
    shutdown_seconds: int = SHUTDOWN_SECONDS,
) -> None:
    """Serve until SIGTERM or SIGINT, then leave: the steps take `leaving_seconds` and at most `shutdown_seconds`."""
    # What is loaded by now stays for good; looking through it again and again costs a tenth of a request.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)
    LeavingServer(configured(app, shutdown_seconds), app, leaving_seconds).run(sockets=list(listeners))


def configured(app: FastAPI, shutdown_seconds: int = SHUTDOWN_SECONDS) -> uvicorn.Config:
    """Return how uvicorn serves a service."""
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        lifespan="on",
        loop="uvloop",
        http=BoundedProtocol,
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=shutdown_seconds,
        backlog=BACKLOG,
    )


class LeavingServer(uvicorn.Server):
    """uvicorn's, with a first step before its own shutdown. A second signal ends that step."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, leaving_seconds: float) -> None:
        super().__init__(config)
        self._served_app = app
        self._leaving_seconds = leaving_seconds
        self._hurry: Callable[[], object] = lambda: None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await super().serve(_repeated(sockets or []))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._hurry()
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """As uvicorn, which in the end sends itself the signal again and so dies: the last lines are written before."""
        with super().capture_signals():
            yield
            logs.flush()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._served_app.state.leaving = True
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        hurry = asyncio.Event()
        self._hurry = partial(asyncio.get_running_loop().call_soon_threadsafe, hurry.set)
        with suppress(TimeoutError):
            await asyncio.wait_for(hurry.wait(), self._leaving_seconds)
        await self._listen_no_more(sockets or [])
        await super().shutdown(sockets)

    async def _listen_no_more(self, listeners: Sequence[socket.socket]) -> None:
        """Close the listeners; who was let in by the kernel, and not yet by us, would hear a reset: they are taken."""
        of_each_address = {listener.getsockname(): listener for listener in listeners}.values()
        last = [listener.dup() for listener in of_each_address]
        for server in self.servers:
            server.close()
        waiting = [connection for listener in last for connection in _taken_and_closed(listener)]
        loop = asyncio.get_running_loop()
        for connection in waiting:
            protocol = partial(
                BoundedProtocol, self.config, self.server_state, app_state=self.lifespan.state, _loop=loop
            )
            await loop.connect_accepted_socket(protocol, connection)


def _repeated(listeners: Sequence[socket.socket]) -> list[socket.socket]:
    """Return each listener ACCEPTS_A_TURN times, because libuv takes one connection of each in a turn of the loop.

    Under load a turn takes milliseconds: of 256 clients that come at once the last would wait a second behind those
    that are connected.
    """
    copies = ACCEPTS_A_TURN - 1
    return [each for listener in listeners for each in (listener, *(listener.dup() for _ in range(copies)))]


def _taken_and_closed(listener: socket.socket) -> list[socket.socket]:
    """Take the connections that wait, and close, with nothing in between: who comes in between is reset."""
    taken = []
    listener.setblocking(False)
    with listener, suppress(OSError):  # none is left
        while True:
            taken.append(listener.accept()[0])
    for connection in taken:
        connection.setblocking(False)
    return taken
