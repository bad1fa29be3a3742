"""A load that costs little: so many connections, each sending its next request when the last is answered whole.

With a `rate`, of all together and a second, each sends when its turn has come, and a latency begins then: a server that
is late does not delay the next measurement unseen.

    python benchmarks/load.py '{"host": ..., "port": ..., "path": ..., "headers": {...}, "body": ..., "connections": 64,
                               "seconds": 5}'

prints one JSON object: requests, seconds, p50/p99 in milliseconds, how many were answered with each status, and how
many connections broke before their answer was whole or had not ended GRACE_SECONDS after the deadline.
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

GRACE_SECONDS = 20.0


@dataclass
class Tally:
    """What the connections of one run have seen together."""

    deadline: float
    interval: float  # of one connection's requests, in seconds; 0 without a rate
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    broken: int = 0


class Client(asyncio.Protocol):
    """One connection: a request, its answer, the next request, until the deadline."""

    def __init__(self, request: bytes, tally: Tally, done: asyncio.Future[None], first: float) -> None:
        self.request = request
        self.tally = tally
        self.done = done
        self.due = first
        self.awaits = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self.wait()

    def wait(self) -> None:
        """Send at once, or when this connection's turn has come."""
        if self.tally.interval and self.due > time.perf_counter():
            delay = self.due - time.perf_counter()
            asyncio.get_running_loop().call_later(delay, self.send)
        else:
            self.send()

    def send(self) -> None:
        now = time.perf_counter()
        if now >= self.tally.deadline:
            self.awaits = False
            self.transport.close()
            return
        self.awaits = True
        self.parser = httptools.HttpResponseParser(self)
        self.started = self.due if self.tally.interval else now
        self.due += self.tally.interval
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.tally.latencies.append(time.perf_counter() - self.started)
        self.tally.statuses[self.parser.get_status_code()] += 1
        self.wait()

    def connection_lost(self, _: Exception | None) -> None:
        self.tally.broken += self.awaits
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
    interval = job["connections"] / job["rate"] if job.get("rate") else 0.0
    tally = Tally(deadline=started + job["seconds"], interval=interval)
    waiting = []
    for number in range(job["connections"]):
        done = loop.create_future()
        first = started + interval * number / job["connections"]
        client = partial(Client, request, tally, done, first)
        await loop.create_connection(client, job["host"], job["port"])
        waiting.append(done)
    _, late = await asyncio.wait(waiting, timeout=job["seconds"] + GRACE_SECONDS)
    taken = time.perf_counter() - started
    milliseconds = sorted(latency * 1000 for latency in tally.latencies)
    return {
        "requests": len(milliseconds),
        "seconds": taken,
        "requests_per_second": len(milliseconds) / taken,
        "p50_ms": statistics.median(milliseconds) if milliseconds else None,
        "p99_ms": milliseconds[int(len(milliseconds) * 0.99)] if milliseconds else None,
        "statuses": dict(tally.statuses),
        "broken": tally.broken + len(late),
    }


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run(json.loads(sys.argv[1])))))
