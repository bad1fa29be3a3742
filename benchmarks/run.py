"""`make bench`: what Darktree costs, everything on and durable, beside the bare upstream in the same run.

Prints progress on standard error and a report in Markdown on standard output; `--output FILE` writes it there too.
Machines are shared and noisy: compare within one run, never between two.
"""

import argparse
import asyncio
import json
import os
import platform as machine
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import database
import hard_stop
import pairs
import psutil
from stage import (
    BODY,
    HERE,
    LARGE_CAP_TOKENS,
    LARGE_CREDIT_DOLLARS,
    Stage,
    cpu_seconds,
    peak_megabytes,
    platform,
    until_served_by_upstream,
    upstream,
)

from darktree_ledger.client import LedgerClient

FSYNC_ROUNDS = 200
_CALIBRATION = [{"number": number, "text": str(number)} for number in range(200)]
WARM_UP_SECONDS = 2.0


@dataclass
class Row:
    """One line of the table: the medians of several rounds of the same load."""

    name: str
    connections: int
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def median(self, what: str) -> float:
        return float(statistics.median(round_[what] for round_ in self.rounds))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def load(
    host: str, port: int, key: str, stream: bool, connections: int, seconds: float
) -> dict[str, Any]:
    """Send a load from a process of its own."""
    job = {
        "host": host,
        "port": port,
        "path": "/v1/chat/completions",
        "headers": {"authorization": f"Bearer {key}"},
        "body": BODY | {"stream": stream},
        "connections": connections,
        "seconds": seconds,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / "load.py"), json.dumps(job), stdout=subprocess.PIPE
    )
    output, _ = await process.communicate()
    result: dict[str, Any] = json.loads(output)
    assert set(result["statuses"]) == {"200"}, f"not everything was answered: {result['statuses']}"
    return result


async def measure_gateways(stage: Stage, workers: int, options: argparse.Namespace) -> list[Row]:
    """Measure the gateway and the bare upstream in turns, so that both see the same machine."""
    key = await stage.customer(f"load-{workers}", cap_tokens=LARGE_CAP_TOKENS, dollars=LARGE_CREDIT_DOLLARS)
    await until_served_by_upstream(stage, key)
    host, port = stage.gateway
    await load(host, port, key, False, 16, WARM_UP_SECONDS)
    rows = []
    for stream in (False, True):
        kind = "streamed" if stream else "plain"
        for connections in (1, 64):
            bare = Row(f"{kind}, bare upstream", connections)
            through = Row(f"{kind}, {workers} gateway{'s' if workers > 1 else ''}", connections)
            for number in range(options.rounds):
                say(f"{through.name}, {connections} connections, round {number + 1} of {options.rounds}")
                bare.rounds.append(
                    await load(
                        "127.0.0.1", stage.upstream_port, "none", stream, connections, options.seconds / 2
                    )
                )
                processes = stage.processes()
                before = cpu_seconds(processes)
                result = await load(host, port, key, stream, connections, options.seconds)
                after = cpu_seconds(processes)
                for name in before:
                    part = name.partition("-")[0]
                    result[part] = (
                        result.get(part, 0.0) + (after[name] - before[name]) / result["requests"] * 1e6
                    )
                through.rounds.append(result)
            rows += [bare, through]
    return rows


async def measure_ledger(stage: Stage, options: argparse.Namespace) -> dict[str, float]:
    """Measure the ledger alone, with the platform otherwise idle."""
    settings = _environment_of(stage, "ledger")
    url = f"http://127.0.0.1:{settings['DARKTREE_LEDGER_PORT']}"
    billing = LedgerClient(url, settings["DARKTREE_LEDGER_BILLING_TOKEN"])
    gateway = LedgerClient(url, settings["DARKTREE_LEDGER_GATEWAY_TOKEN"])
    say("the ledger alone")
    customers = await pairs.fill(billing)
    found = {
        f"{pairs.CUSTOMERS} customers": await pairs.pairs_per_second(gateway, customers, options.seconds),
        "one hot customer": await pairs.pairs_per_second(gateway, customers[:1], options.seconds),
    }
    await billing.close()
    await gateway.close()
    return found


def measure_database(options: argparse.Namespace) -> dict[str, float]:
    """Measure the ledger's function in its database, beside its peers, and sealing."""
    say("the ledger in its database, beside plain rows and one transfer a transaction")
    with database.database() as url:
        return database.measure(url, options.seconds)


def measure_alone(script: str) -> dict[str, Any]:
    """Run a benchmark that measures its own memory, in a process of its own."""
    say(f"{script}.py")
    output = subprocess.run([sys.executable, str(HERE / f"{script}.py")], check=True, stdout=subprocess.PIPE)
    result: dict[str, Any] = json.loads(output.stdout)
    return result


def _environment_of(stage: Stage, name: str) -> dict[str, str]:
    environment: dict[str, str] = stage.processes()[name][0].environ()
    return environment


def fsync_milliseconds() -> float:
    """Return the median time of one durable write on the disk that the database is on."""
    times = []
    with tempfile.TemporaryFile(prefix="dt-") as file:
        for _ in range(FSYNC_ROUNDS):
            file.write(b"x" * 8192)
            file.flush()
            started = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


def calibration_microseconds() -> float:
    """Return how long a fixed piece of Python takes now: on shared machines it varies by two within an hour."""
    times = []
    for _ in range(200):
        started = time.perf_counter()
        json.loads(json.dumps(_CALIBRATION))
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


def books(found: dict[str, float], verified: dict[str, Any], statement: dict[str, Any]) -> list[str]:
    """Return what was measured of the ledger's function, its proofs and statements, with ratios to the peers."""
    rows, hot = found[database.ROWS], found[database.HOT_TRANSFERS]
    lines = [
        "",
        "| in the database, durable | a second | of plain rows | of transfers |",
        "|---|---|---|---|",
    ]
    for name, rate in found.items():
        beside = hot if "hot" in name else found[database.TRANSFERS]
        ratios = (f"{rate / rows:.2f}", f"{rate / beside:.1f}") if name != database.SEALED else ("", "")
        lines.append(f"| {name} | {rate:,.0f} | {' | '.join(ratios)} |")
    seconds = statement["seconds"]
    return [
        *lines,
        "",
        f"Offline verification: {verified['entries_per_second']:,} entries a second, "
        f"{verified['peak_megabytes_a_process']} MB a process at most. "
        f"Statement of a month with {statement['entries']:,} entries: {statement['all_three_seconds']:.1f} s for "
        f"JSON, CSV and PDF together, {statement['peak_megabytes']} MB; {seconds['verify']:.1f} s to verify.",
    ]


def operator(found: dict[str, Any] | None) -> list[str]:
    """Return what was measured of the operator, as Markdown."""
    if found is None:
        return ["", "The operator was left out: there is no kube-apiserver (KUBEBUILDER_ASSETS)."]
    one, many, count = found["single_ms"], found["many_ms"], found["lanes"]
    return [
        "",
        f"The operator, on Kubernetes {found['version']}: from a lane's creation to its Deployment "
        f"{one['p50']:.0f} ms (p99 {one['p99']:.0f} ms) for one lane, {many['p50']:.0f} ms (p99 {many['p99']:.0f} ms) "
        f"for {count} at once; {found['requests_a_lane_until_quiet']} requests a lane until all serve and nothing "
        f"changes; then {found['requests_a_lane_hour']} requests a lane an hour with {count} lanes, and "
        f"{found['idle_cpu_percent']} % of a core while an hour's looks are made in a minute; {found['megabytes']} MB.",
    ]


def console(pages: dict[str, dict[str, Any]]) -> list[str]:
    """Return what was measured of the console's pages, as Markdown."""
    lines = [
        "",
        "| page of the console, nothing cached | loaded after ms | at most | first byte | KB | requests | CPU ms: "
        "billing | ledger | Postgres |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in pages.items():
        figures = ("loaded_ms", "loaded_ms_at_most", "first_byte_ms", "kilobytes", "requests")
        cells = [name, *(str(found[figure]) for figure in figures)]
        cells += [f"{found['cpu_ms'][part]:.0f}" for part in ("billing", "ledger", "postgres")]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def report(
    rows: list[Row], ledger: dict[str, float], stopped: dict[str, object], memory: dict[str, float]
) -> list[str]:
    """Return what was measured of the gateway and the ledger over HTTP, as Markdown."""
    lines = [
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, {psutil.cpu_count()} cores ({_processor()}), "
        f"{psutil.virtual_memory().total // 2**30} GiB, {machine.system()} {machine.release().split('-')[0]}, "
        f"Python {machine.python_version()}; one durable 8 KiB write: {fsync_milliseconds():.2f} ms; "
        f"200 small objects to JSON and back: {calibration_microseconds():.0f} us. "
        "Load, upstream, gateways, ledger and Postgres share the cores.",
        "",
        "| load | connections | requests a second | p50 ms | p99 ms | added p50 ms | CPU us a request: gateway | "
        "ledger | Postgres |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    bare = {(row.name.partition(",")[0], row.connections): row for row in rows if "bare" in row.name}
    for row in rows:
        cells = [row.name, str(row.connections), f"{row.median('requests_per_second'):,.0f}"]
        cells += [f"{row.median('p50_ms'):.2f}", f"{row.median('p99_ms'):.2f}"]
        if "bare" in row.name:
            cells += ["", "", "", ""]
        else:
            under = bare[row.name.partition(",")[0], row.connections]
            cells.append(f"{row.median('p50_ms') - under.median('p50_ms'):.2f}")
            cells += [f"{row.median(part):,.0f}" for part in ("gateway", "ledger", "postgres")]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"Ledger alone, hold and settle pairs a second in batches of {pairs.BATCH_PAIRS}: "]
    lines[-1] += "; ".join(f"{name} {value:,.0f}" for name, value in ledger.items()) + "."
    lines += [
        "",
        "Peak memory, MB: " + ", ".join(f"{name} {value:.0f}" for name, value in memory.items()) + ".",
    ]
    lines += ["", "The hard stop: " + "; ".join(f"{name} {value}" for name, value in stopped.items()) + "."]
    return lines


def _processor() -> str:
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")]  # fmt: skip
    return names[0] if names else machine.machine()


async def measure_platform(options: argparse.Namespace) -> list[str]:
    rows: list[Row] = []
    port = 20_000 + os.getpid() % 10_000
    with upstream(port):
        say("starting darktree with one gateway")
        async with platform(1, port) as stage:
            rows += await measure_gateways(stage, 1, options)
            memory = peak_megabytes(stage.processes())
            ledger = await measure_ledger(stage, options)
        say("starting darktree with two gateways")
        async with platform(2, port) as stage:
            rows += await measure_gateways(stage, 2, options)
            say("the hard stop")
            stopped = await hard_stop.run(stage)
    return report(rows, ledger, stopped, memory)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each round (default: 5)")
    parser.add_argument("--rounds", type=int, default=3, help="medians of so many rounds (default: 3)")
    parser.add_argument(
        "--only", choices=["platform", "books", "operator", "console"], help="measure only this part"
    )
    parser.add_argument("--output", type=Path, help="write the report here too")
    chosen = parser.parse_args()
    lines = asyncio.run(measure_platform(chosen)) if chosen.only in {None, "platform"} else []
    if chosen.only in {None, "books"}:
        lines += books(measure_database(chosen), measure_alone("verify"), measure_alone("statement"))
    if chosen.only in {None, "operator"}:
        lines += operator(measure_alone("lanes"))
    if chosen.only in {None, "console"}:
        lines += console(measure_alone("console"))
    text = "\n".join(lines) + "\n"
    print(text)
    if chosen.output:
        chosen.output.write_text(text)
