"""The chain of a customer's entries, recomputed without the database.

An entry's hash is SHA-256 over a zero byte, the entry's bytes and the hash before it. The bytes, version 1: each
field of FIELDS in order as a four-byte big-endian length and its content; a missing one is the length ffffffff alone.
Integers are eight bytes, big-endian, two's complement; `usage_day` is four bytes of days and `recorded_at` eight bytes
of microseconds since 1970-01-01 UTC; ids are their sixteen bytes; text is UTF-8. `ledger.entry_hash` says the same in
SQL, and a test compares them.
"""

import hashlib
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

VERSION = "darktree-entry-v1"
FIELDS = (
    "customer_id", "seq", "entry_id", "kind", "debit_account", "credit_account", "amount_nanos",
    "balance_after_nanos", "usage_day", "hold_id", "key_id", "model", "lane", "prompt_tokens", "completion_tokens",
    "prompt_price_nanos", "completion_price_nanos", "outcome", "reason", "actor", "reference", "recorded_at",
)  # fmt: skip
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def genesis(customer_id: str) -> bytes:
    """Return what stands before a customer's first entry."""
    return hashlib.sha256(_field("darktree-account-v1") + _field(customer_id)).digest()


def entry_hash(entry: Any, prev_hash: bytes) -> bytes:
    """Return the hash of an entry (anything with the attributes of FIELDS) that follows `prev_hash`."""
    content = _field(VERSION) + b"".join(_field(getattr(entry, name)) for name in FIELDS)
    return hashlib.sha256(b"\x00" + content + prev_hash).digest()


def _field(value: str | int | UUID | datetime | date | None) -> bytes:
    match value:
        case None:
            return b"\xff\xff\xff\xff"
        case str():
            content = value.encode()
        case int():
            content = value.to_bytes(8, signed=True)
        case UUID():
            content = value.bytes
        case datetime():
            content = ((value - _EPOCH) // timedelta(microseconds=1)).to_bytes(8, signed=True)
        case date():
            content = (value - _EPOCH.date()).days.to_bytes(4, signed=True)
    return len(content).to_bytes(4) + content
