"""The hash of an entry is the same from its row and from its document, and every field counts."""

from datetime import UTC, date, datetime, timedelta
from struct import error as StructError
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darktree_ledger import chain

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
BIGINT = st.integers(-(2**63), 2**63 - 1)
TEXT = st.none() | st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))
TYPES: dict[str, st.SearchStrategy[Any]] = {
    "entry_id": st.uuids(),
    "hold_id": st.none() | st.uuids(),
    "usage_day": st.none() | st.dates(date(2000, 1, 1)),
    "recorded_at": st.integers(0, 2**52).map(lambda us: _EPOCH + timedelta(microseconds=us)),
} | {
    name: BIGINT
    for name in (*chain.FIELDS, "bonus_nanos")
    if name.endswith(("_nanos", "_tokens")) or name == "seq"
}
ENTRIES = st.fixed_dictionaries({name: TYPES.get(name, TEXT) for name in (*chain.FIELDS, "bonus_nanos")})


def document(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as it is exported."""
    return {
        name: value.isoformat().replace("+00:00", "Z")
        if isinstance(value, date)
        else str(value)
        if isinstance(value, UUID)
        else value
        for name, value in row.items()
    }


@given(ENTRIES, st.sampled_from([1, 2]), st.binary(min_size=32, max_size=32))
def test_a_row_and_its_document_have_the_same_hash(row: dict[str, Any], version: int, prev: bytes) -> None:
    row |= {"version": version}
    assert chain.document_hash(document(row), prev) == chain.entry_hash(SimpleNamespace(**row), prev)


@given(ENTRIES, ENTRIES, st.sampled_from((*chain.FIELDS, "bonus_nanos")))
def test_every_field_counts(one: dict[str, Any], other: dict[str, Any], name: str) -> None:
    changed = document(one) | {name: document(other)[name], "version": 2}
    same = changed == document(one) | {"version": 2}
    hashes = [chain.document_hash(entry | {"version": 2}, b"") for entry in (document(one), changed)]
    assert (hashes[0] == hashes[1]) == same


@pytest.mark.parametrize(
    ("field", "value"), [("seq", "1"), ("entry_id", "12"), ("recorded_at", "now"), ("version", 3)]
)
def test_a_field_that_is_not_what_it_must_be_is_refused(field: str, value: object) -> None:
    row: dict[str, Any] = dict.fromkeys(chain.FIELDS) | {name: 0 for name in TYPES if TYPES[name] is BIGINT}
    row |= {"version": 2, "entry_id": str(UUID(int=1)), "recorded_at": "2026-11-01T00:00:00Z"}
    assert len(chain.document_hash(row, b"")) == 32
    with pytest.raises((KeyError, ValueError, TypeError, StructError)):
        chain.document_hash(row | {field: value}, b"")
