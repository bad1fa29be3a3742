"""Statements of a month with many entries: made, written as JSON, CSV and PDF, and verified; seconds and memory.

The entries are made here and the ledger is a stand-in, so that this measures billing's work alone. `python
benchmarks/statement.py --entries 100000` prints the figures; `--folder` keeps the three files.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson

from darktree_billing.statement_csv import csv_text
from darktree_billing.statement_json import HOW_TO_VERIFY, SECTIONS, Statement, json_lines, sha256_of
from darktree_billing.statement_pdf import pdf_bytes
from darktree_billing.statement_period import Period
from darktree_billing.statement_totals import Totals
from darktree_billing.statement_verification import verify
from darktree_kit.notes import make_signer
from darktree_ledger import chain, merkle
from darktree_ledger.checkpoints import Checkpoint

ENTRIES = 100_000
CUSTOMER = "acme"
CAP_TOKENS = 7_000
PRICES = {"qwen25-14b-awq": 750_000, "qwen25-32b-awq": 1_500_000}
PERIOD = Period.parse("2026-11")
LOG_KEY, BOOKS_KEY = make_signer("darktree.dev/ledger/bench"), make_signer("darktree.dev/books/bench")


def made_entries(count: int, keys: int = 3) -> Iterator[dict[str, Any]]:
    """Make a month's chain: a bonus, a purchase, then usages spread over the month."""
    head, balance, bonus = chain.genesis(CUSTOMER), 0, 0
    models = list(PRICES)
    for seq in range(1, count + 1):
        at = PERIOD.start + timedelta(days=30) * seq / (count + 1)
        fields: dict[str, Any] = dict.fromkeys(chain.FIELDS) | {
            "version": 2,
            "customer_id": CUSTOMER,
            "seq": seq,
        }
        fields |= dict.fromkeys(name for name in chain.FIELDS if name.endswith(("tokens", "price_nanos")))
        fields |= {name: 0 for name in fields if name.endswith(("tokens", "price_nanos"))}
        fields |= {"entry_id": str(UUID(int=(7 << 76) + (2 << 62) + seq)), "bonus_nanos": 0}
        if seq <= 2:
            amount = 5 * 10**9 if seq == 1 else count * 10**9
            source = "bonus_credits" if seq == 1 else "stripe_clearing"
            told = {"kind": "grant", "debit_account": source, "credit_account": "customer_credits"}
            fields |= told | {"reason": "welcome" if seq == 1 else "bundle", "reference": f"cs_{seq}"}
            bonus += amount if seq == 1 else 0
            balance += amount
            fields["bonus_nanos"] = amount if seq == 1 else 0
        else:
            model = models[seq % 7 % 2]
            price, prompt, completion = PRICES[model], 20 + seq % 40, 10 + seq % 90
            amount = (prompt + completion) * price
            told = {"kind": "usage", "debit_account": "customer_credits", "credit_account": "revenue"}
            fields |= told | {"usage_day": f"{at:%Y-%m-%d}", "hold_id": str(UUID(int=seq)), "model": model}
            fields |= {"key_id": f"key{seq % keys}", "lane": "standard", "outcome": "completed"}
            fields |= {"prompt_tokens": prompt, "completion_tokens": completion}
            fields |= {"prompt_price_nanos": price, "completion_price_nanos": price}
            fields["bonus_nanos"] = min(bonus, amount)
            bonus -= fields["bonus_nanos"]
            balance -= amount
        fields |= {"amount_nanos": amount, "balance_after_nanos": balance}
        fields |= {
            "recorded_at": at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "prev_hash": head.hex(),
        }
        head = chain.document_hash(fields, head)
        yield fields | {"hash": head.hex()}


def made_statement(lines: Iterator[bytes], file: Any, keys: int = 3, **customer: str) -> Statement:
    """Fold exported lines into a statement, as `statements` does with the ledger's."""
    totals = Totals(0, 0, 0, chain.genesis(CUSTOMER).hex())
    edge, count = merkle.Edge(), 0
    for line in lines:
        entry = orjson.loads(line)
        totals.add(entry)
        file.write(orjson.dumps(entry) + b"\n")
        edge.append([bytes.fromhex(entry["hash"])])
        count += 1
    note = Checkpoint(LOG_KEY.name, edge.size, edge.root()).signed([LOG_KEY])
    sections = totals.sections()
    tokens = {row["day"]: row["prompt_tokens"] + row["completion_tokens"] for row in sections["usage_by_day"]}
    days = [
        {"day": day, "cap_tokens": CAP_TOKENS, "tokens": used, "refused_requests": 3 * (used >= CAP_TOKENS),
         "at_cap": used >= CAP_TOKENS}
        for day, used in tokens.items()
    ]  # fmt: skip
    change = {"changed_at": "2026-11-12T09:30:00.000000Z", "cap_tokens": CAP_TOKENS, "previous_cap_tokens": 6_000,
              "reason": "moved to the Team plan", "actor": "admin"}  # fmt: skip
    sections |= {
        "statement": {
            "format": "darktree-statement-v1", "number": f"DT-{PERIOD}-{CUSTOMER}", "period": str(PERIOD),
            "start": PERIOD.start.isoformat(), "end": PERIOD.end.isoformat(), "status": "final",
            "currency": "USD", "unit": "nano-dollars", "seller": "Darktree Inference Ltd",
        },
        "customer": {"id": CUSTOMER, "name": "Acme Ltd", "email": "books@acme.test", "plan": "team"} | customer,
        "keys": [{"key_id": f"key{n}", "name": f"key {n}", "prefix": "dt_live_", "last4": f"{n:04d}"}
                 for n in range(keys)],
        "caps": {"opening_cap_tokens": 6_000, "changes": [change], "days": days,
                 "days_at_cap": sum(day["at_cap"] for day in days),
                 "refused_requests": sum(day["refused_requests"] for day in days)},
        "holds": None,
        "chain": {"opening": {"seq": 0, "head": chain.genesis(CUSTOMER).hex()},
                  "closing": {"seq": totals.seq, "head": totals.head}},
        "proof": {"checkpoint": note, "entry": None, "earlier": None,
                  "keys": [{"vkey": str(LOG_KEY.verifier), "endorsement": None}]},
        "how_to_verify": list(HOW_TO_VERIFY),
    }  # fmt: skip
    return Statement({name: sections[name] for name in SECTIONS}, file, count)


def measure(entries: int = ENTRIES, folder: Path | None = None) -> dict[str, Any]:
    """Return seconds of each step and the peak of memory in megabytes, for a month of so many entries."""
    with tempfile.TemporaryDirectory(prefix="dt-") as made:
        target = folder or Path(made)
        exported = Path(made) / "export.jsonl"
        with exported.open("wb") as file:
            file.writelines(orjson.dumps(entry) + b"\n" for entry in made_entries(entries))
        seconds: dict[str, float] = {}
        started = time.perf_counter()

        def lap(name: str) -> None:
            nonlocal started
            seconds[name] = round(time.perf_counter() - started, 3)
            started = time.perf_counter()

        with exported.open("rb") as lines, tempfile.SpooledTemporaryFile(4_000_000, dir=made) as spooled:
            statement = made_statement(lines, spooled)
            lap("fold")
            with (target / "statement.json").open("wb") as written:
                written.writelines(json_lines(statement, BOOKS_KEY))
            lap("json")
            digest = sha256_of(statement, BOOKS_KEY)
            (target / "statement.csv").write_text(csv_text(statement, digest))
            lap("csv")
            (target / "statement.pdf").write_bytes(pdf_bytes(statement, digest))
            lap("pdf")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        report = verify(target / "statement.json")
        lap("verify")
        problems = [str(failure) for failure in report.failures.kept]
        assert all("proof.entry" in problem for problem in problems), problems
        made_seconds = round(sum(seconds.values()) - seconds["verify"], 3)
        return {
            "entries": entries,
            "seconds": seconds,
            "all_three_seconds": made_seconds,
            "peak_megabytes": round(peak),
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=ENTRIES)
    parser.add_argument("--folder", type=Path, help="keep the statement's files here")
    chosen = parser.parse_args()
    print(json.dumps(measure(chosen.entries, chosen.folder), indent=2))
