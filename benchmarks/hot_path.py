"""The gateway's path of one request by itself: the real application in one process, without sockets, ledger or engine.

    python benchmarks/hot_path.py plain --requests 20000

`plain`, `streamed` (64 tokens at once) or `paced` (an event each turn of the loop). Prints the processor's microseconds
a request, of the best of some rounds. On a shared machine count instructions instead: docs/performance.md.
"""

import argparse
import asyncio
import gc
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import upstream
import uvloop
import yaml
from stage import BODY, MODEL
from uvicorn.server import ServerState

from darktree_billing.client import BillingClient
from darktree_billing.key_format import make_key
from darktree_billing.schemas import Catalog, ModelView, VerifiedKey
from darktree_gateway.app import make_app
from darktree_gateway.connections import Connection, Connections, Origin
from darktree_gateway.settings import Settings
from darktree_kit import logs, server
from darktree_kit.channel import Channel
from darktree_kit.wire import BoundedProtocol

CONNECTIONS = 64
ROUNDS = 8
LANE = {
    "apiVersion": "darktree.dev/v1alpha1",
    "kind": "InferenceLane",
    "metadata": {"name": "standard"},
    "spec": {
        "tier": "Standard",
        "model": {"source": f"hf://{MODEL}", "servedName": MODEL},
        "engine": {"kind": "Simulator", "contextLength": upstream.CONTEXT_LENGTH},
    },
    "status": {"endpoints": [{"url": "http://127.0.0.1:9"}]},
}
ACCOUNT = {"outcome": "done", "balance_nanos": 10**15, "held_nanos": 1_000, "cap_tokens": 10**8, "day": "2026-01-01",
           "day_tokens": 1_000, "day_held_tokens": 100, "reset_seconds": 4_000}  # fmt: skip
HELD = orjson.dumps(
    ACCOUNT | {"completion_tokens": 64, "usage_day": "2026-01-01", "expires_in_seconds": 60.0}
)
SETTLED = orjson.dumps(
    ACCOUNT | {"entry_id": "01990000-0000-7000-8000-000000000000", "seq": 1, "charged_tokens": 40}
)


class Quiet(asyncio.Transport):
    """A transport that goes nowhere."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})

    def is_closing(self) -> bool:
        return False

    def close(self) -> None: ...

    def abort(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Client(Quiet):
    """Sends its next request when the last is answered whole."""

    def __init__(self, request: bytes, end: bytes, server: BoundedProtocol) -> None:
        super().__init__()
        self._request, self._end, self._server = request, end, server
        self._loop = asyncio.get_running_loop()
        self._left = 0
        server.connection_made(self)

    def send(self, requests: int) -> asyncio.Future[None]:
        self._left, self._done = requests, self._loop.create_future()
        self._server.data_received(self._request)
        return self._done

    def write(self, data: bytes) -> None:  # type: ignore[override]
        if data.endswith(self._end):
            self._left -= 1
            if self._left:
                self._loop.call_soon(self._server.data_received, self._request)
            else:
                self._done.set_result(None)


class Engine(Quiet):
    """Answers each request with the same pieces, each in a turn of the loop."""

    def __init__(self, pieces: list[bytes], connection: Connection) -> None:
        super().__init__()
        self._pieces, self._connection = pieces, connection
        connection.connection_made(self)

    def write(self, data: bytes) -> None:  # type: ignore[override] # noqa: ARG002
        self._speak(iter(self._pieces))

    def _speak(self, pieces: Iterator[bytes]) -> None:
        asyncio.get_running_loop().call_soon(self._say, pieces)

    def _say(self, pieces: Iterator[bytes]) -> None:
        if (piece := next(pieces, None)) is not None:
            self._speak(pieces)
            self._connection.data_received(piece)


def replace_what_is_outside(pieces: list[bytes]) -> None:
    """Billing knows one key and one model, the ledger grants everything, the engine says these pieces."""
    model = ModelView(id=MODEL, display_name=MODEL, prompt_price_nanos=100, completion_price_nanos=200,
                      default_completion_tokens=1_024, created=0)  # fmt: skip

    async def catalog(_: Any) -> Catalog:
        return Catalog(plans=[], models=[model])

    async def verify_key(*_: Any) -> VerifiedKey:
        return VerifiedKey(key_id="k", customer_id="peer", expires_at=None)

    async def post(channel: Any, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        channel._head(path, len(body), headers)
        await asyncio.sleep(0)
        return b"[%b]" % b",".join(HELD if each["op"] == "hold" else SETTLED for each in orjson.loads(body))

    async def _connect(connections: Connections, origin: Origin) -> Connection:
        connection = Connection(connections, origin)
        Engine(pieces, connection)
        return connection

    replaced: list[tuple[Any, Callable[..., Any]]] = [
        (BillingClient, catalog),
        (BillingClient, verify_key),
        (Channel, post),
        (Connections, _connect),
    ]
    for owner, function in replaced:
        setattr(owner, function.__name__, function)


async def run(kind: str, requests: int, folder: Path) -> float:
    """Return the microseconds of a request, the best of the rounds."""
    head, end = upstream.STREAM_HEAD, upstream.STREAM_END
    events = upstream._events(upstream.COMPLETION_TOKENS if kind == "plain" else 64)
    replace_what_is_outside([head, *events, end] if kind == "paced" else [head + b"".join(events) + end])
    (folder / "lanes.yaml").write_text(yaml.safe_dump(LANE))
    settings = Settings.model_validate(
        {"ledger_url": "http://127.0.0.1:9", "ledger_token": "x" * 32, "billing_url": "http://127.0.0.1:9",
         "billing_token": "x" * 32, "lanes_file": folder / "lanes.yaml", "journal_dir": folder / "journal",
         "engine_metrics_interval_seconds": 0}
    )  # fmt: skip
    body = json.dumps(BODY | ({} if kind == "plain" else {"stream": True, "max_tokens": 64})).encode()
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {make_key().text}\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body
    app = make_app(settings)
    config = server.configured(app)
    config.load()
    async with app.router.lifespan_context(app):
        await asyncio.sleep(0.2)  # until prices are known
        state = ServerState()
        clients = [
            Client(request, b"}" if kind == "plain" else end, BoundedProtocol(config, state, {}))
            for _ in range(CONNECTIONS)
        ]
        gc.collect()
        gc.freeze()
        each = max(1, requests // CONNECTIONS // ROUNDS)
        taken = []
        for _ in range(ROUNDS):
            began = time.process_time()
            await asyncio.gather(*(client.send(each) for client in clients))
            taken.append((time.process_time() - began) / each / CONNECTIONS * 1e6)
    return min(taken)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=["plain", "streamed", "paced"])
    parser.add_argument(
        "--requests", type=int, default=20_000, help="in all rounds together (default: 20000)"
    )
    chosen = parser.parse_args()
    logs.configure("gateway")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # lines are made and written, and not shown
    with tempfile.TemporaryDirectory() as place:
        best = uvloop.run(run(chosen.kind, chosen.requests, Path(place)))
    print(f"{chosen.kind}: {best:.1f} us a request")
