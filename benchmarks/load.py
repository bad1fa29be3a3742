"""A load that costs little: so many connections, each sending its next request when the last is answered whole.

    python benchmarks/load.py '{"host": ..., "port": ..., "path": ..., "headers": {...}, "body": ..., "connections": 64,
                               "seconds": 5}'

prints one JSON object: requests, seconds, p50/p99 in milliseconds, and how many were answered with each status.
"""

import asyncio
import json
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import httptools
import uvloop

CONNECT_TRIES = 50


@dataclass
class Tally:
    """What the connections of one run have seen together."""

    deadline: float
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)


class Client(asyncio.Protocol):
    """One connection: a request, its answer, the next request, until the deadline."""

    def __init__(self, request: bytes, tally: Tally, done: asyncio.Future[None]) -> None:
        self.request = request
        self.tally = tally
        self.done = done

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self.send()

    def send(self) -> None:
        if time.perf_counter() >= self.tally.deadline:
            self.transport.close()
            return
        self.parser = httptools.HttpResponseParser(self)
        self.started = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.tally.latencies.append(time.perf_counter() - self.started)
        self.tally.statuses[self.parser.get_status_code()] += 1
        self.send()

    def connection_lost(self, _: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


async def run(job: dict[str, Any]) -> dict[str, Any]:
    """Send one job's load and return what was seen."""
    loop = asyncio.get_running_loop()
    body = json.dumps(job["body"], separators=(",", ":")).encode()
    lines = [f"POST {job['path']} HTTP/1.1", f"host: {job['host']}", "content-type: application/json"]
    lines += [f"{name}: {value}" for name, value in job["headers"].items()]
    request = "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body
    started = time.perf_counter()
    tally = Tally(deadline=started + job["seconds"])
    waiting = []
    for _ in range(job["connections"]):
        done = loop.create_future()
        await loop.create_connection(partial(Client, request, tally, done), job["host"], job["port"])
        waiting.append(done)
    await asyncio.gather(*waiting)
    taken = time.perf_counter() - started
    milliseconds = sorted(latency * 1000 for latency in tally.latencies)
    return {
        "requests": len(milliseconds),
        "seconds": taken,
        "requests_per_second": len(milliseconds) / taken,
        "p50_ms": statistics.median(milliseconds),
        "p99_ms": milliseconds[int(len(milliseconds) * 0.99)],
        "statuses": dict(tally.statuses),
    }


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run(json.loads(sys.argv[1])))))
