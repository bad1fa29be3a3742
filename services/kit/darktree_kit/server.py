"""How a service's process runs: uvicorn on sockets that this process opened itself.

Several gateways share one public port (SO_REUSEPORT: the kernel spreads connections over them), and each has a
private port of its own for probes and metrics.
"""

import gc
import socket
from collections.abc import Sequence

import uvicorn
from starlette.types import ASGIApp

from darktree_kit.wire import BoundedProtocol

BACKLOG = 2048
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
    app: ASGIApp, listeners: Sequence[socket.socket], *, shutdown_seconds: int = SHUTDOWN_SECONDS
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is running, for as long as `shutdown_seconds`."""
    config = uvicorn.Config(
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
    # What is loaded by now stays for good; looking through it again and again costs a tenth of a request.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)
    uvicorn.Server(config).run(sockets=list(listeners))
