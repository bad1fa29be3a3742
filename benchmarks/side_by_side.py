"""`make bench-peers`: Darktree with everything on beside proxies that do less: one machine, one upstream, one load.

All run at once; each round loads one after another, in another order each time, so that every one sees the same
machine. Compare within a run, never between two. Prints progress on standard error and a report in Markdown on standard
output.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hard_stop
import psutil
from peers import proxies, report
from peers.ground import Missing, Peer
from run import calibration_microseconds, say
from stage import (
    BODY,
    HERE,
    LARGE_CAP_TOKENS,
    LARGE_CREDIT_DOLLARS,
    Stage,
    platform,
    until_served_by_upstream,
    upstream,
)
from upstream import STEADY

from darktree_kit.version import VERSION

CONNECTIONS = (1, 16, 64, 256)
STREAMED_TOKENS = 64
EVENTS = STREAMED_TOKENS + 3  # a first one, the usage, and the end
HALF = 0.5
STARTERS: dict[str, Callable[[int], AbstractContextManager[Peer]]] = {
    "nginx": proxies.nginx,
    "vllm-router": proxies.vllm_router,
    "portkey": proxies.portkey,
    "litellm": proxies.litellm,
    "older-litellm": proxies.older_litellm,
}
PACED = ("nginx", "vllm-router", "Darktree")
Load = dict[str, Any]


@dataclass
class Cell:
    """What one peer did under one load, a round at a time."""

    rounds: list[dict[str, Any]] = field(default_factory=list)

    def median(self, what: str) -> float | None:
        values = [found[what] for found in self.rounds if found.get(what) is not None]
        return float(statistics.median(values)) if values else None

    @property
    def failed(self) -> int:
        return sum(found["failed"] for found in self.rounds)


Cells = dict[tuple[str, int, str], Cell]  # kind of load, connections, peer


async def load(
    peer: Peer, kind: str, connections: int, seconds: float, rate: float | None = None
) -> dict[str, Any]:
    """Send a load from a process of its own; return what came of it, and what it cost the peer."""
    streamed = {"stream": True, "max_tokens": STREAMED_TOKENS}
    body = BODY | ({"stream": False} if kind == "plain" else streamed)
    if kind == "paced":
        body |= {"messages": [{"role": "user", "content": STEADY}]}
    job = {
        "host": "127.0.0.1",
        "port": peer.port,
        "path": "/v1/chat/completions",
        "headers": {"authorization": f"Bearer {peer.key}"} | dict(peer.headers),
        "body": body,
        "connections": connections,
        "seconds": seconds,
        "rate": rate,
    }
    before = peer.cpu_seconds()
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / "load.py"), json.dumps(job), stdout=subprocess.PIPE
    )
    output, _ = await process.communicate()
    after = peer.cpu_seconds()
    found: dict[str, Any] = json.loads(output)
    right = found["statuses"].get("200", 0)
    found["failed"] = found["requests"] - right + found["broken"]
    if found["failed"]:  # what is not all answered is no rate
        found["requests_per_second"] = None
    if not right:
        return found | {"p50_ms": None, "p99_ms": None, "cpu_us": None, "parts": {}}
    pieces = right * (EVENTS if kind == "paced" else 1)
    spent = {part: (after[part] - before[part]) / pieces * 1e6 for part in after}
    return found | {"cpu_us": sum(spent.values()), "parts": spent}


async def measure(peers: list[Peer], loads: list[tuple[str, int]], options: argparse.Namespace) -> Cells:
    cells: Cells = defaultdict(Cell)
    started, steps = time.monotonic(), len(loads) * (options.rounds + 1) * len(peers)
    done = 0
    for number in range(options.rounds + 1):
        for kind, connections in loads:
            turn = number % len(peers)
            for peer in peers[turn:] + peers[:turn]:
                done += 1
                if kind == "paced" and peer.name not in PACED:
                    continue
                # The first round only warms everybody up.
                found = await load(peer, kind, connections, options.seconds if number else 0.5)
                if number:
                    cells[kind, connections, peer.name].rounds.append(found)
                spent = time.monotonic() - started
                say(
                    f"{spent:4.0f} s, {done} of {steps}: {peer.name}, {kind}, {connections} connections: "
                    f"{found['requests'] / found['seconds']:,.0f} requests/s, {found['cpu_us'] or 0:,.0f} us CPU, "
                    f"{found['failed']} failed"
                )
    return cells


async def darktree(stage: Stage, name: str = "Darktree") -> Peer:
    key = await stage.customer("peer", cap_tokens=LARGE_CAP_TOKENS, dollars=LARGE_CREDIT_DOLLARS)
    await until_served_by_upstream(stage, key)

    def parts() -> dict[str, list[psutil.Process]]:
        found: dict[str, list[psutil.Process]] = defaultdict(list)
        for process, tree in stage.processes().items():
            part = process.partition("-")[0]
            found[part if part in {"gateway", "ledger", "postgres"} else "others"] += tree
        return found

    return Peer(
        name=name,
        version=VERSION,
        configuration="darktree up: one gateway, ledger, billing, sealer, Postgres with fsync",
        does="everything on: keys, exact holds, charges durable before an answer ends, chained entries, a sealed log",
        port=stage.gateway[1],
        key=key,
        parts=parts,
    )


async def at_half_rate(peer: Peer, cells: Cells, options: argparse.Namespace) -> dict[str, Any]:
    """Return the latencies at half the rate that the peer reached, counted from when each request was due.

    Medians of rounds: in a short one, a single wait of the disk is a hundredth of all requests.
    """
    rate = HALF * (cells["plain", 64, peer.name].median("requests_per_second") or 0.0)
    cell = Cell(
        [await load(peer, "plain", 64, 2 * options.seconds, rate=rate) for _ in range(options.rounds)]
    )
    return {"rate": rate, "failed": cell.failed, **{what: cell.median(what) for what in ("p50_ms", "p99_ms")}}


async def two_workers(port: int, one: Peer, options: argparse.Namespace) -> dict[str, Cell]:
    """Measure two gateways beside one, in turns."""
    say("starting darktree with two gateways")
    async with platform(2, port) as stage:
        two = await darktree(stage, "two gateways")
        cells = await measure([one, two], [("plain", 64)], options)
    return {name: cells["plain", 64, name] for name in (one.name, two.name)}


async def main(options: argparse.Namespace) -> list[str]:
    port = 20_000 + os.getpid() % 10_000
    names = options.only.split(",") if options.only else [*STARTERS, "darktree"]
    left_out: list[str] = []
    async with contextlib.AsyncExitStack() as running:
        running.enter_context(upstream(port))
        peers: list[Peer] = []
        for name in (name for name in names if name in STARTERS):
            say(f"starting {name}")
            try:
                peers.append(running.enter_context(STARTERS[name](port)))
            except (Missing, OSError, subprocess.SubprocessError) as error:
                left_out.append(f"{name}: {error}")
                say(f"left out: {left_out[-1]}")
        say("starting darktree")
        stage = await running.enter_async_context(platform(1, port))
        ours = await darktree(stage)
        peers.append(ours)
        loads = [(kind, connections) for kind in ("plain", "streamed") for connections in options.connections]
        loads += [("paced", 64)]
        pieces = {"calibration": calibration_microseconds(), "fsync": report.fsync_microseconds()}
        cells = await measure(peers, loads, options)
        found = report.Found(
            peers, dict(cells), left_out, pieces, {peer.name: peer.megabytes() for peer in peers}
        )
        found.half = await at_half_rate(ours, cells, options)
        if not options.quick:
            found.workers = await two_workers(port, ours, options)
        say("the hard stop")
        found.stopped = await hard_stop.run(stage)
    return report.lines(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load (default: 3)")
    parser.add_argument("--rounds", type=int, default=3, help="medians of so many rounds (default: 3)")
    parser.add_argument(
        "--quick", action="store_true", help="one round, 64 connections only, a minute or two"
    )
    parser.add_argument("--only", help=f"of {','.join(STARTERS)}: these; Darktree always runs")
    parser.add_argument("--output", type=Path, help="write the report here too")
    chosen = parser.parse_args()
    chosen.connections = (64,) if chosen.quick else CONNECTIONS
    if chosen.quick:
        chosen.rounds = 1
    text = "\n".join(asyncio.run(main(chosen))) + "\n"
    print(text)
    if chosen.output:
        chosen.output.write_text(text)
