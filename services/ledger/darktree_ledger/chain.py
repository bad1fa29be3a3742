"""The chain of a customer's entries, recomputed without the database.

An entry's hash is SHA-256 over a zero byte, the entry's bytes and the hash before it. The bytes: the version's text,
then each of its fields in order, as a four-byte big-endian length and its content; a missing one is the length
ffffffff alone. Integers are eight bytes, big-endian, two's complement; `usage_day` is four bytes of days and
`recorded_at` eight bytes of microseconds since 1970-01-01 UTC; ids are their sixteen bytes; text is UTF-8.
`ledger.entry_hash` says the same in SQL, and a test compares them. `document_hash` does it for an entry as it is
exported, in a few microseconds.
"""

import hashlib
import struct
from collections.abc import Mapping
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

FIELDS = (
    "customer_id", "seq", "entry_id", "kind", "debit_account", "credit_account", "amount_nanos",
    "balance_after_nanos", "usage_day", "hold_id", "key_id", "model", "lane", "prompt_tokens", "completion_tokens",
    "prompt_price_nanos", "completion_price_nanos", "outcome", "reason", "actor", "reference", "recorded_at",
)  # fmt: skip
# What an entry of each version is made of. Version 2 says how much of the amount is bonus credits.
VERSIONS = {
    1: ("darktree-entry-v1", FIELDS),
    2: ("darktree-entry-v2", (*FIELDS, "bonus_nanos")),
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MISSING = b"\xff\xff\xff\xff"
_CACHED_TEXTS = 16_384


def genesis(customer_id: str) -> bytes:
    """Return what stands before a customer's first entry."""
    return hashlib.sha256(_field("darktree-account-v1") + _field(customer_id)).digest()


def entry_hash(entry: Any, prev_hash: bytes) -> bytes:
    """Return the hash of an entry (anything with its version's fields as attributes) that follows `prev_hash`."""
    text, names = VERSIONS[getattr(entry, "version", 1)]
    content = _field(text) + b"".join(_field(getattr(entry, name)) for name in names)
    return hashlib.sha256(b"\x00" + content + prev_hash).digest()


def document_hash(entry: Mapping[str, Any], prev_hash: bytes) -> bytes:
    """Return the hash of an entry document that follows `prev_hash`: what `entry_hash` returns, six times as fast.

    Raises KeyError, TypeError, ValueError or struct.error when a field is missing or is not what it must be.
    """
    version = entry["version"]
    return hashlib.sha256(
        b"".join(
            (
                b"\x00",
                _texts(VERSIONS[version][0], entry["customer_id"]),
                _INTEGER(8, entry["seq"]),
                _id(entry["entry_id"]),
                _texts(entry["kind"], entry["debit_account"], entry["credit_account"]),
                _TWO_INTEGERS(8, entry["amount_nanos"], 8, entry["balance_after_nanos"]),
                _day(entry["usage_day"]),
                _id(entry["hold_id"]),
                _texts(entry["key_id"], entry["model"], entry["lane"]),
                _TWO_INTEGERS(8, entry["prompt_tokens"], 8, entry["completion_tokens"]),
                _TWO_INTEGERS(8, entry["prompt_price_nanos"], 8, entry["completion_price_nanos"]),
                _texts(entry["outcome"], entry["reason"], entry["actor"], entry["reference"]),
                _INTEGER(8, _microseconds(datetime.fromisoformat(entry["recorded_at"]))),
                _INTEGER(8, entry["bonus_nanos"]) if version > 1 else b"",
                prev_hash,
            )
        )
    ).digest()


_INTEGER = struct.Struct(">Iq").pack
_TWO_INTEGERS = struct.Struct(">IqIq").pack


@lru_cache(_CACHED_TEXTS)
def _texts(*values: str | None) -> bytes:
    return b"".join(map(_field, values))


@lru_cache(_CACHED_TEXTS)
def _day(value: str | None) -> bytes:
    return _field(value and date.fromisoformat(value))


def _id(value: str | None) -> bytes:
    if value is None:
        return _MISSING
    content = bytes.fromhex("00000010" + value.replace("-", ""))
    if len(content) != 20:
        raise ValueError(f"{value!r} is not a UUID")
    return content


def _microseconds(value: datetime) -> int:
    since = value - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _field(value: str | int | UUID | datetime | date | None) -> bytes:
    match value:
        case None:
            return _MISSING
        case str():
            content = value.encode()
        case int():
            content = value.to_bytes(8, signed=True)
        case UUID():
            content = value.bytes
        case datetime():
            content = _microseconds(value).to_bytes(8, signed=True)
        case date():
            content = (value - _EPOCH.date()).days.to_bytes(4, signed=True)
    return len(content).to_bytes(4) + content
