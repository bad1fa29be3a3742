"""What metering costs in front of a real engine: the same streams to it directly and through Darktree, in turns.

    python benchmarks/engine.py --port 8000 [--connections 1 16 64] [--output FILE]

The engine listens on that port of this machine and serves the model that `stage.MODEL` names. Everything of Darktree
is on and durable. An engine's speed varies with what it batches, so each row is measured in alternating rounds and
told as a ratio. At the end what the gateway answered, what the ledger charged and what the engine counted must be one
number.
"""

import argparse
import asyncio
import json
import re
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from stage import BODY, LARGE_CAP_TOKENS, LARGE_CREDIT_DOLLARS, MODEL, Stage, cpu_seconds, platform

COMPLETION_TOKENS = 128
PROMPT_WORDS = 150
CONNECTIONS = (1, 16, 64)
ROUNDS = 3
STREAMS_A_CONNECTION = 3
CUSTOMER = "engine"
PATH = "/v1/chat/completions"
LANES_TIMEOUT_SECONDS = 30
QUIET_TIMEOUT_SECONDS = 30


@dataclass
class Streams:
    """What one round saw."""

    first_seconds: list[float] = field(default_factory=list)
    between_seconds: list[float] = field(default_factory=list)
    tokens: int = 0
    total_seconds: float = 0.0

    def summary(self) -> dict[str, float]:
        """Return the medians in milliseconds and the tokens a second."""
        return {
            "first_ms": statistics.median(self.first_seconds) * 1000,
            "between_ms": statistics.median(self.between_seconds) * 1000,
            "tokens_per_second": self.tokens / self.total_seconds,
            "tokens": self.tokens,
        }


async def one_stream(session: aiohttp.ClientSession, url: str, key: str, number: int, seen: Streams) -> None:
    """Ask for one answer of fixed length and time its events."""
    words = " ".join(f"w{number}x{word}" for word in range(PROMPT_WORDS))
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": words}],
        "max_tokens": COMPLETION_TOKENS,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started = last = time.perf_counter()
    usage: dict[str, int] | None = None
    async with session.post(url, json=body, headers={"Authorization": f"Bearer {key}"}) as answer:
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            now = time.perf_counter()
            event = json.loads(line[6:])
            usage = event.get("usage") or usage
            if event["choices"] and not event["choices"][0]["delta"].get("role"):
                (seen.between_seconds if last != started else seen.first_seconds).append(now - last)
                last = now
    assert usage is not None, "an answer without usage"
    seen.tokens += usage["prompt_tokens"] + usage["completion_tokens"]


async def one_round(base: str, key: str, connections: int, offset: int) -> dict[str, float]:
    """Keep so many streams going until each connection has had its share."""
    seen, url = Streams(), base + PATH
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=300)
    ) as session:

        async def connection(index: int) -> None:
            for turn in range(STREAMS_A_CONNECTION):
                await one_stream(session, url, key, offset + index * STREAMS_A_CONNECTION + turn, seen)

        started = time.perf_counter()
        await asyncio.gather(*(connection(index) for index in range(connections)))
        seen.total_seconds = time.perf_counter() - started
    return seen.summary()


async def engine_tokens(engine: str) -> int:
    """Return the prompt and generated tokens that the engine counted since it started, once it is quiet."""
    deadline = time.monotonic() + QUIET_TIMEOUT_SECONDS
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline:
            async with session.get(f"{engine}/metrics") as answer:
                text = await answer.text()
            if not _metric(text, "vllm:num_requests_running"):
                return _metric(text, "vllm:prompt_tokens_total") + _metric(
                    text, "vllm:generation_tokens_total"
                )
            await asyncio.sleep(0.1)
    raise AssertionError("the engine is still busy")


async def measure(stage: Stage, engine: str, connections: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Measure every number of connections, directly and through the gateway in turns."""
    key = await stage.customer(CUSTOMER, cap_tokens=LARGE_CAP_TOKENS, dollars=LARGE_CREDIT_DOLLARS)
    warm_up = await _until_served(stage, key, engine)
    host, port = stage.gateway
    through, offset, rows = f"http://{host}:{port}", 0, []
    counted = answered = 0
    for number in connections:
        row: dict[str, Any] = {"connections": number, "direct": [], "darktree": []}
        for turn in range(rounds + 1):  # the first is to warm up
            for name, base, token in (("direct", engine, "none"), ("darktree", through, key)):
                say(f"{number} connections, {name}, round {turn} of {rounds}")
                processes = stage.processes()
                tokens, cpu = await engine_tokens(engine), cpu_seconds(processes)
                result = await one_round(base, token, number, offset)
                offset += number * STREAMS_A_CONNECTION
                if name == "darktree":
                    counted += await engine_tokens(engine) - tokens
                    answered += int(result["tokens"])
                    after = cpu_seconds(processes)
                    generated = number * STREAMS_A_CONNECTION * COMPLETION_TOKENS
                    result["cpu_us_a_token"] = sum(after[name] - cpu[name] for name in cpu) / generated * 1e6
                if turn:
                    row[name].append(result)
        rows.append(row)
    charged = (await stage.admin.balance(CUSTOMER)).day_tokens - warm_up
    return {"rows": rows, "tokens": {"answered": answered, "charged": charged, "engine": counted}}


async def _until_served(stage: Stage, key: str, engine: str) -> int:
    """Wait until the gateway asks this engine, no simulated one; return the tokens charged until then."""
    deadline = time.monotonic() + LANES_TIMEOUT_SECONDS
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session:
        while time.monotonic() < deadline:
            before = await engine_tokens(engine)
            async with session.post(f"{stage.base_url}/chat/completions", json=BODY) as answer:
                await answer.read()
            if await engine_tokens(engine) > before:
                return (await stage.admin.balance(CUSTOMER)).day_tokens
    raise AssertionError("the gateway did not take the engine")


def report(found: dict[str, Any]) -> str:
    """Return the table in Markdown."""
    lines = [
        "| connections | tokens/s: engine alone | through Darktree | ratio | first token ms: alone | through "
        "| between tokens ms: alone | through | Darktree's CPU us a token |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        direct = {what: _median(row["direct"], what) for what in row["direct"][0]}
        ours = {what: _median(row["darktree"], what) for what in row["darktree"][0]}
        ratio = ours["tokens_per_second"] / direct["tokens_per_second"]
        lines.append(
            f"| {row['connections']} | {direct['tokens_per_second']:,.0f} | {ours['tokens_per_second']:,.0f} "
            f"| {ratio:.3f} | {direct['first_ms']:.1f} | {ours['first_ms']:.1f} | {direct['between_ms']:.2f} "
            f"| {ours['between_ms']:.2f} | {ours['cpu_us_a_token']:.0f} |"
        )
    tokens = found["tokens"]
    said = f"{tokens['answered']:,} in the answers, {tokens['charged']:,} charged, {tokens['engine']:,} by the engine"
    lines += ["", f"Tokens through Darktree: {said}."]
    return "\n".join(lines)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _median(rounds: list[dict[str, float]], what: str) -> float:
    return float(statistics.median(round_[what] for round_ in rounds))


def _metric(text: str, name: str) -> int:
    return sum(
        int(float(value)) for value in re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.M)
    )


async def main() -> None:
    """Measure, print, and keep what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--port", type=int, required=True, help="of this machine, on which the engine answers"
    )
    parser.add_argument("--connections", type=int, nargs="+", default=CONNECTIONS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--output", type=Path, help="write everything that was found there, as JSON")
    options = parser.parse_args()
    async with platform(1, options.port) as stage:
        found = await measure(
            stage, f"http://127.0.0.1:{options.port}", tuple(options.connections), options.rounds
        )
    if options.output:
        options.output.write_text(json.dumps(found, indent=1))
    print(report(found))
    tokens = found["tokens"]
    assert tokens["answered"] == tokens["charged"] == tokens["engine"], f"the three counts differ: {tokens}"


if __name__ == "__main__":
    asyncio.run(main())
