"""Offline verification: entries a second of an exported ledger, on this machine's cores, and the memory that it takes.

The export is made here: its entries belong to many customers, in turns. `python benchmarks/verify.py` prints them.
"""

import argparse
import hashlib
import json
import resource
import tempfile
import time
from itertools import chain as chained
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson

from darktree_kit.notes import make_signer
from darktree_ledger import chain, merkle
from darktree_ledger.checkpoints import Checkpoint
from darktree_ledger.export_file import FORMAT, verify

ENTRIES = 500_000
CUSTOMERS = 1_000
ROUNDS = 3
PRICE_NANOS = 750_000
KEY = make_signer("darktree.dev/ledger/bench")


def usage(customer_id: str, seq: int, number: int, prev: bytes, balance_nanos: int) -> dict[str, Any]:
    """Return the document of a usage, as the ledger exports it."""
    prompt, completion = 20 + number % 50, 10 + number % 90
    amount = (prompt + completion) * PRICE_NANOS
    seconds, micros = divmod(number * 1_000, 1_000_000)
    at = f"2026-11-{1 + seconds // 86_400 % 30:02d}T{seconds // 3600 % 24:02d}:{seconds // 60 % 60:02d}"
    entry = {
        "version": 2, "entry_id": str(UUID(int=(7 << 76) + (2 << 62) + number)), "customer_id": customer_id, "seq": seq,
        "kind": "usage", "debit_account": "customer_credits", "credit_account": "revenue", "amount_nanos": amount,
        "bonus_nanos": 0, "balance_after_nanos": balance_nanos - amount, "usage_day": at[:10],
        "hold_id": str(UUID(int=number)), "key_id": f"key-{number % 300}", "model": "qwen25-14b-awq",
        "lane": "standard", "prompt_tokens": prompt, "completion_tokens": completion,
        "prompt_price_nanos": PRICE_NANOS, "completion_price_nanos": PRICE_NANOS, "outcome": "completed",
        "reason": None, "actor": None, "reference": None, "recorded_at": f"{at}:{seconds % 60:02d}.{micros:06d}Z",
        "prev_hash": prev.hex(),
    }  # fmt: skip
    return entry | {"hash": chain.document_hash(entry, prev).hex()}


def write_export(path: Path, entries: int, customers: int) -> None:
    """Write an export of so many entries, as `darktree ledger export` does."""
    names = [f"customer-{number}" for number in range(customers)]
    heads = {name: (0, chain.genesis(name), 0) for name in names}
    edge, spooled = merkle.Edge(), path.with_suffix(".entries")
    with spooled.open("wb") as file:
        for number in range(entries):
            name = names[number % customers]
            seq, prev, balance = heads[name]
            entry = usage(name, seq + 1, number, prev, balance)
            head = bytes.fromhex(entry["hash"])
            heads[name] = (seq + 1, head, entry["balance_after_nanos"])
            edge.append([head])
            line = {
                "position": number,
                "leaf": entry["hash"],
                "customer_id": name,
                "seq": seq + 1,
                "entry": entry,
            }
            file.write(orjson.dumps(line) + b"\n")
    note = Checkpoint(KEY.name, edge.size, edge.root()).signed([KEY])
    published = {
        "vkey": str(KEY.verifier),
        "endorsement": None,
        "first_size": 0,
        "added_at": "2026-11-01T00:00:00Z",
    }
    header = {"format": FORMAT, "customer_id": None, "checkpoint": note, "keys": [published]}
    whole = hashlib.sha256()
    with path.open("wb") as file, spooled.open("rb") as lines:
        for part in chained([orjson.dumps(header) + b"\n"], iter(lambda: lines.read(1_000_000), b"")):
            whole.update(part)
            file.write(part)
        trailer = {"entries": entries}
        whole.update(orjson.dumps(trailer))
        file.write(orjson.dumps(trailer | {"sha256": whole.hexdigest()}) + b"\n")
    spooled.unlink()


def measure(entries: int = ENTRIES, customers: int = CUSTOMERS, rounds: int = ROUNDS) -> dict[str, Any]:
    """Return entries verified a second (the best of several rounds, and all), and the peak of memory in megabytes."""
    with tempfile.TemporaryDirectory(prefix="dt-") as folder:
        path = Path(folder) / "ledger.jsonl"
        write_export(path, entries, customers)
        rates, cpu_before = [], _cpu_seconds()
        for _ in range(rounds):
            started = time.perf_counter()
            report = verify(path, [KEY.verifier])
            rates.append(round(entries / (time.perf_counter() - started)))
            assert not report.failures.count, report.failures.kept[:3]
            assert (report.entries, report.customers) == (entries, customers)
        cpu = (_cpu_seconds() - cpu_before) / rounds / entries
        megabytes = path.stat().st_size / 1e6
    peak = (
        max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        / 1024
    )
    return {
        "entries": entries,
        "customers": customers,
        "file_megabytes": round(megabytes),
        "entries_per_second": max(rates),
        "rounds": rates,
        "cpu_microseconds_an_entry": round(cpu * 1e6, 2),
        "peak_megabytes_a_process": round(peak),
    }


def _cpu_seconds() -> float:
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in spent)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=ENTRIES)
    parser.add_argument("--customers", type=int, default=CUSTOMERS)
    chosen = parser.parse_args()
    print(json.dumps(measure(chosen.entries, chosen.customers), indent=2))
