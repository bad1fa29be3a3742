"""`make soak`: so many requests through one gateway, everything on, and its memory, files and connections on the way.

    python benchmarks/soak.py --requests 1000000

Plain and streamed loads take turns in rounds of a few seconds, each with connections of its own. Printed, as Markdown,
is what each gateway has after each round; and it fails when a request failed, when the ledger charged anything but what
the upstream answered, or when something grew.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
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
from upstream import COMPLETION_TOKENS, PROMPT_TOKENS

ROUND_SECONDS = 10.0
REST_SECONDS = 6.0  # until connections that are kept for a while are closed
MAX_MEGABYTES = 120.0
MAX_GROWTH_PERCENT = 5.0  # from a quarter of the requests to all of them
MAX_MORE_FILES = 8
CUSTOMER = "soaker"


@dataclass(frozen=True)
class Sample:
    """What the gateways have, the largest of each, after so many requests."""

    requests: int
    megabytes: float
    files: int
    connections: int


@dataclass
class Soak:
    """One run."""

    stage: Stage
    key: str
    token_price_nanos: int
    wanted: int
    seconds: float
    connections: int
    samples: list[Sample] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    @property
    def answered(self) -> int:
        return self.statuses["200"]

    async def run(self) -> float:
        """Send everything, or what fits into the time; return the seconds it took."""
        began = time.monotonic()
        stream = False
        while sum(self.statuses.values()) < self.wanted and time.monotonic() - began < self.seconds:
            self.statuses.update((await self._round(stream))["statuses"])
            stream = not stream
            self.samples.append(self.sample())
            print(self.samples[-1], file=sys.stderr, flush=True)
        return time.monotonic() - began

    async def _round(self, stream: bool) -> Any:
        host, port = self.stage.gateway
        job = {
            "host": host,
            "port": port,
            "path": "/v1/chat/completions",
            "headers": {"authorization": f"Bearer {self.key}"},
            "body": BODY | {"stream": stream},
            "connections": self.connections,
            "seconds": ROUND_SECONDS,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(HERE / "load.py"), json.dumps(job), stdout=subprocess.PIPE
        )
        content, _ = await process.communicate()
        assert process.returncode == 0, "the load failed"
        return json.loads(content)

    def sample(self) -> Sample:
        gateways = [
            process
            for name, tree in self.stage.processes().items()
            for process in tree
            if name.startswith("gateway-")
        ]
        return Sample(
            requests=sum(self.statuses.values()),
            megabytes=max(process.memory_info().rss for process in gateways) / 2**20,
            files=max(process.num_fds() for process in gateways),
            connections=max(_established(process) for process in gateways),
        )

    async def charged_tokens(self) -> int:
        account = await self.stage.admin.balance(CUSTOMER)
        assert account.held_nanos == 0, f"{account.held_nanos} nano-dollars are still held"
        granted_nanos = int(LARGE_CREDIT_DOLLARS) * 10**9
        return (granted_nanos - account.balance_nanos) // self.token_price_nanos


def _established(process: psutil.Process) -> int:
    return sum(each.status == psutil.CONN_ESTABLISHED for each in process.net_connections("tcp"))


def problems_of(
    soak: Soak, start: Sample, rest: Sample, charged_tokens: int, before_tokens: int
) -> list[str]:
    """Return what is wrong, in words."""
    problems = []
    if others := {status: count for status, count in soak.statuses.items() if status != "200"}:
        problems.append(f"not every request was answered: {others}")
    expected = soak.answered * (PROMPT_TOKENS + COMPLETION_TOKENS) + before_tokens
    if charged_tokens != expected:
        problems.append(f"the ledger charged {charged_tokens} tokens, the upstream answered {expected}")
    first = soak.samples[len(soak.samples) // 4]
    growth = (soak.samples[-1].megabytes / first.megabytes - 1) * 100
    if growth > MAX_GROWTH_PERCENT:
        problems.append(f"memory grew by {growth:.1f}% since {first.requests:,} requests")
    if (most := max(sample.megabytes for sample in soak.samples)) > MAX_MEGABYTES:
        problems.append(f"a gateway had {most:.0f} MB, more than {MAX_MEGABYTES:.0f}")
    if rest.files > start.files + MAX_MORE_FILES:
        problems.append(f"{rest.files} files are open at rest, {start.files} were before")
    return problems


def report(soak: Soak, start: Sample, rest: Sample, seconds: float, gateways: int) -> str:
    requests = sum(soak.statuses.values())
    step = max(1, len(soak.samples) // 12)
    shown = [*soak.samples[::step], soak.samples[-1]]
    lines = [
        f"{requests:,} requests, plain and streamed in turns, {soak.connections} connections, {gateways} gateways: "
        f"{seconds:.0f} s, {requests / seconds:.0f} a second.",
        "",
        "| requests | memory of a gateway, MB | open files | connections |",
        "|---|---|---|---|",
        f"| before | {start.megabytes:.1f} | {start.files} | {start.connections} |",
        *(
            f"| {each.requests:,} | {each.megabytes:.1f} | {each.files} | {each.connections} |"
            for each in shown
        ),
        f"| at rest | {rest.megabytes:.1f} | {rest.files} | {rest.connections} |",
    ]
    return "\n".join(lines)


async def main(options: argparse.Namespace) -> list[str]:
    port = 20_000 + os.getpid() % 10_000
    with upstream(port):
        async with platform(options.gateways, port) as stage:
            key = await stage.customer(CUSTOMER, cap_tokens=LARGE_CAP_TOKENS, dollars=LARGE_CREDIT_DOLLARS)
            await until_served_by_upstream(stage, key)
            price_nanos = (await stage.admin.plans()).models[0].prompt_price_nanos  # of completions too
            soak = Soak(stage, key, price_nanos, options.requests, options.seconds, options.connections)
            before_tokens = await soak.charged_tokens()
            start = soak.sample()
            seconds = await soak.run()
            await asyncio.sleep(REST_SECONDS)
            rest = soak.sample()
            text = report(soak, start, rest, seconds, options.gateways)
            problems = problems_of(soak, start, rest, await soak.charged_tokens(), before_tokens)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")
    return problems


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=100_000, help="how many (default: 100000)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="at most (default: no end)")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--gateways", type=int, default=1)
    parser.add_argument("--output", type=Path, help="write the report here too")
    if found := asyncio.run(main(parser.parse_args())):
        sys.exit("\n".join(found))
