"""What was measured side by side, as Markdown: medians, and ratios to nginx and to Darktree of the same run."""

import platform as machine
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from peers.ground import Peer

PG_TEST_FSYNC_PATHS = ("/usr/lib/postgresql/*/bin/pg_test_fsync", "/usr/local/bin/pg_test_fsync")


@dataclass
class Found:
    """Everything of one run."""

    peers: list[Peer]
    cells: dict[tuple[str, int, str], Any]
    left_out: list[str]
    pieces: dict[str, Any]
    megabytes: Mapping[str, float]
    half: dict[str, Any] = field(default_factory=dict)
    workers: dict[str, Any] = field(default_factory=dict)
    stopped: dict[str, object] = field(default_factory=dict)


def fsync_microseconds() -> float | None:
    """Return what one fdatasync of 8 KiB takes by `pg_test_fsync`, or None where that program is not."""
    programs = sorted(path for pattern in PG_TEST_FSYNC_PATHS for path in Path("/").glob(pattern.lstrip("/")))
    if not programs:
        return None
    with tempfile.TemporaryDirectory(prefix="dt-") as folder:
        command = [str(programs[-1]), "-s", "1", "-f", f"{folder}/written"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    line = next(line for line in said.splitlines() if line.strip().startswith("fdatasync"))
    return float(line.split()[-2])


def lines(found: Found) -> list[str]:
    """Return the whole report."""
    fsync = found.pieces["fsync"]
    told = "not there" if fsync is None else f"{fsync:,.0f} us"
    return [
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, {psutil.cpu_count()} cores, {machine.system()} "
        f"{machine.release().split('-')[0]}, Python {machine.python_version()}; 200 small objects to JSON and back: "
        f"{found.pieces['calibration']:.0f} us; one fdatasync of 8 KiB (pg_test_fsync): {told}. Load, upstream, every "
        "proxy and Darktree's database share the cores.",
        *_peers(found),
        *_table(found, "plain", "Plain answers of 648 bytes (Darktree's engine streams 16 tokens for each)"),
        *_table(found, "streamed", "Streamed answers of 64 tokens, all sent at once"),
        *_paced(found),
        *_parts(found),
        *_rest(found),
    ]


def _peers(found: Found) -> list[str]:
    rows = ["", "| who | version | configuration | does | memory, MB |", "|---|---|---|---|---|"]
    for peer in found.peers:
        memory = f"{found.megabytes[peer.name]:,.0f}"
        rows.append(f"| {peer.name} | {peer.version} | {peer.configuration} | {peer.does} | {memory} |")
    return [*rows, *(f"\nLeft out: {why}" for why in found.left_out)]


def _table(found: Found, kind: str, title: str) -> list[str]:
    rows = [
        "",
        f"{title}:",
        "",
        "| who | connections | requests a second | Darktree's are | p50 ms | p99 ms | CPU us a request | x nginx | "
        "failed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for connections in sorted({count for name, count, _ in found.cells if name == kind}):
        ours, nginx = (found.cells.get((kind, connections, name)) for name in ("Darktree", "nginx"))
        for peer in found.peers:
            cell = found.cells[kind, connections, peer.name]
            rate, cpu = cell.median("requests_per_second"), cell.median("cpu_us")
            ratio = _ratio(ours and ours.median("requests_per_second"), rate)
            cells = [peer.name, str(connections), _number(rate), ratio]
            cells += [_number(cell.median("p50_ms"), 2), _number(cell.median("p99_ms"), 2), _number(cpu)]
            cells += [_ratio(cpu, nginx and nginx.median("cpu_us")), str(cell.failed)]
            rows.append("| " + " | ".join(cells) + " |")
    return rows


def _paced(found: Found) -> list[str]:
    rows = [
        "",
        "Streams paced at one event each 10 ms, 64 connections:",
        "",
        "| who | CPU us an event | x nginx | failed |",
        "|---|---|---|---|",
    ]
    nginx = found.cells.get(("paced", 64, "nginx"))
    for peer in found.peers:
        if cell := found.cells.get(("paced", 64, peer.name)):
            cpu = cell.median("cpu_us")
            ratio = _ratio(cpu, nginx and nginx.median("cpu_us"))
            rows.append(f"| {peer.name} | {_number(cpu, 1)} | {ratio} | {cell.failed} |")
    return rows


def _parts(found: Found) -> list[str]:
    rows = [
        "",
        "Darktree's CPU by part, us a request:",
        "",
        "| load | connections | gateway | ledger | Postgres | others | gateway x nginx | all x nginx |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (kind, connections, name), cell in found.cells.items():
        if name != "Darktree" or kind == "paced":
            continue
        nginx = found.cells.get((kind, connections, "nginx"))
        base = nginx and nginx.median("cpu_us")
        parts = {
            part: float(sorted(spent["parts"].get(part, 0.0) for spent in cell.rounds)[len(cell.rounds) // 2])
            for part in ("gateway", "ledger", "postgres", "others")
        }
        cells = [kind, str(connections), *(_number(value) for value in parts.values())]
        cells += [_ratio(parts["gateway"], base), _ratio(cell.median("cpu_us"), base)]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _rest(found: Found) -> list[str]:
    half = found.half
    rows = [
        "",
        f"At half its rate ({half['rate']:,.0f} requests a second, 64 connections), from when each was due: p50 "
        f"{_number(half['p50_ms'], 1)} ms, p99 {_number(half['p99_ms'], 1)} ms, {half['failed']} failed.",
    ]
    if found.workers:
        rates = {name: cell.median("requests_per_second") for name, cell in found.workers.items()}
        one, two = rates.values()
        rows += ["", f"Two gateways beside one, 64 connections, in turns: {_number(two)} and {_number(one)} requests "
                 f"a second, {_ratio(two, one)} times."]  # fmt: skip
    stopped = "; ".join(f"{name} {value}" for name, value in found.stopped.items())
    return [*rows, "", f"The hard stop: {stopped}."]


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _ratio(value: float | None, beside: float | None) -> str:
    return "-" if not value or not beside else f"{value / beside:.1f} x"
