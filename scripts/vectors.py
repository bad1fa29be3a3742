"""Writes docs/ledger-vectors.json: examples of everything that docs/ledger-format.md describes, for other verifiers.

Run by `make vectors`; a test compares the file with what this writes.
"""

import hashlib
import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from darktree_kit.notes import Signer
from darktree_ledger import merkle
from darktree_ledger.chain import entry_hash, genesis
from darktree_ledger.checkpoints import Checkpoint, endorse
from darktree_ledger.receipts import Receipt
from darktree_ledger.schemas import EntryView

PATH = Path(__file__).resolve().parent.parent / "docs" / "ledger-vectors.json"
ORIGIN = "darktree.dev/ledger/example"
OLD_KEY = Signer(ORIGIN, hashlib.sha256(b"the old key of the examples").digest())
NEW_KEY = Signer(ORIGIN, hashlib.sha256(b"the new key of the examples").digest())
SIZES = (1, 2, 3, 5, 8, 13, 256, 257, 300)
PROOFS = ((0, 1), (0, 2), (2, 3), (4, 5), (6, 8), (12, 13), (255, 256), (256, 257), (17, 300), (299, 300))
GROWTHS = ((1, 2), (2, 3), (3, 5), (4, 8), (5, 13), (13, 256), (256, 257), (257, 300), (300, 300))
AT = datetime(2026, 11, 23, 18, 38, 23, 123456, UTC)
USAGE = {
    "kind": "usage",
    "debit_account": "customer_credits",
    "credit_account": "revenue",
    "usage_day": date(2026, 11, 23),
    "hold_id": UUID("019353c6-0000-7000-8000-00000000000a"),
    "key_id": "k1",
    "model": "qwen25-14b-awq",
    "lane": "standard",
    "prompt_tokens": 12,
    "completion_tokens": 34,
    "prompt_price_nanos": 750_000,
    "completion_price_nanos": 750_000,
    "amount_nanos": 34_500_000,
    "outcome": "completed",
}
GRANT = {
    "kind": "grant",
    "debit_account": "stripe_clearing",
    "credit_account": "customer_credits",
    "reason": "Team bundle, für München",
    "actor": "billing",
    "reference": "cs_test_1",
}
BONUS = {"debit_account": "bonus_credits", "amount_nanos": 50_000_000_000, "bonus_nanos": 50_000_000_000}


def vectors() -> dict[str, Any]:
    """Return the whole document."""
    entries = _entries()
    log = [bytes.fromhex(entry.hash) for entry in entries]
    note = Checkpoint(ORIGIN, len(log), merkle.root(log)).signed([OLD_KEY, NEW_KEY])
    customers = sorted({entry.customer_id for entry in entries})
    return {
        "genesis": [{"customer_id": name, "hash": genesis(name).hex()} for name in customers],
        "entries": [entry.model_dump(mode="json") for entry in entries],
        "tree": _tree(),
        "checkpoint": {
            "vkeys": [str(OLD_KEY.verifier), str(NEW_KEY.verifier)],
            "leaves": [leaf.hex() for leaf in log],
            "note": note,
        },
        "rotation": {
            "old_vkey": str(OLD_KEY.verifier),
            "new_vkey": str(NEW_KEY.verifier),
            "endorsement": endorse(NEW_KEY.verifier, OLD_KEY),
        },
        "receipt": Receipt(
            entry=entries[3],
            leaf_index=3,
            tree_size=len(log),
            inclusion_proof=_proof(merkle.inclusion(3, len(log)), log),
            checkpoint=note,
            keys=[str(OLD_KEY.verifier), str(NEW_KEY.verifier)],
        ).model_dump(mode="json"),
    }


def _entries() -> list[EntryView]:
    """Return entries as a log might have them: of both versions, of two customers, with everything that is optional."""
    changes: list[dict[str, Any]] = [
        {"version": 1, "customer_id": "acme", **GRANT, "amount_nanos": 150_000_000_000},
        {"version": 1, "customer_id": "acme", **USAGE, "recorded_at": AT.replace(microsecond=0)},
        {"version": 2, "customer_id": "zoo", **GRANT, **BONUS},
        {"version": 2, "customer_id": "acme", **USAGE, "bonus_nanos": 0},
        {"version": 2, "customer_id": "zoo", **USAGE, "bonus_nanos": 34_500_000, "outcome": "abandoned"},
        # The greatest amount: JSON readers that hold numbers as floats get it wrong.
        {
            "version": 2,
            "customer_id": "zoo",
            **GRANT,
            "amount_nanos": 2**63 - 1 - 50_000_000_000 + 34_500_000,
        },
    ]
    entries: list[EntryView] = []
    last: dict[str, EntryView] = {}
    for number, change in enumerate(changes):
        before = last.get(change["customer_id"])
        document: dict[str, Any] = dict.fromkeys(
            ("usage_day", "hold_id", "key_id", "model", "lane", "outcome", "reason", "actor")
        )
        document |= {"reference": None, "bonus_nanos": 0, "recorded_at": AT}
        document |= dict.fromkeys(("prompt_tokens", "completion_tokens", "prompt_price_nanos"), 0)
        document |= {
            "completion_price_nanos": 0,
            "entry_id": UUID(int=0x019353C6_0000_7000_8000_000000000100 + number),
        }
        document |= change
        sign = 1 if document["credit_account"] == "customer_credits" else -1
        prev_hash = before.hash if before else genesis(change["customer_id"]).hex()
        entry = EntryView.model_validate(
            document
            | {
                "seq": before.seq + 1 if before else 1,
                "balance_after_nanos": (before.balance_after_nanos if before else 0)
                + sign * document["amount_nanos"],
                "prev_hash": prev_hash,
                "hash": "",
            }
        )
        entry = entry.model_copy(update={"hash": entry_hash(entry, bytes.fromhex(prev_hash)).hex()})
        entries.append(entry)
        last[entry.customer_id] = entry
    return entries


def _tree() -> dict[str, Any]:
    leaves = [merkle.leaf_hash(str(number).encode()) for number in range(max(SIZES))]
    return {
        "leaf_data": "leaf n is the decimal number n as text; its hash is SHA-256(00 || text)",
        "roots": [{"size": size, "root": merkle.root(leaves[:size]).hex()} for size in SIZES],
        "inclusion": [
            {"leaf_index": index, "tree_size": size, "proof": _proof(merkle.inclusion(index, size), leaves)}
            for index, size in PROOFS
        ],
        "consistency": [
            {"first": first, "second": second, "proof": _proof(merkle.consistency(first, second), leaves)}
            for first, second in GROWTHS
        ],
    }


def _proof(path: merkle.Path, leaves: list[bytes]) -> list[str]:
    rows = [leaves, [value for level, _, value in merkle.Edge().append(leaves) if level == 1]]
    return [
        value.hex() for value in merkle.hashes(path, lambda level, at: rows[level][at * 256 : at * 256 + 256])
    ]


if __name__ == "__main__":
    PATH.write_text(json.dumps(vectors(), indent=2, ensure_ascii=False) + "\n")
