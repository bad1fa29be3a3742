"""A statement's JSON is believed only as it was written: any altered byte is found, and said where it is."""

import io
import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest

from darktree_billing.statement_json import HOW_TO_VERIFY, SECTIONS, Statement, json_lines
from darktree_billing.statement_totals import Totals
from darktree_billing.statement_verification import StatementReport, verify
from darktree_kit.notes import Verifier, make_signer
from darktree_ledger import chain, merkle
from darktree_ledger.checkpoints import Checkpoint
from darktree_ledger.export_file import Unreadable

ORIGIN = "darktree.dev/ledger/test"
LOG_KEY, BOOKS_KEY, OTHER_KEY = (
    make_signer(ORIGIN),
    make_signer("darktree.dev/books/test"),
    make_signer(ORIGIN),
)
PRICE_NANOS = 750_000


def entry(seq: int, prev: bytes, balance: int, **changes: Any) -> dict[str, Any]:
    """Return an entry document: a usage of ten tokens, unless told otherwise."""
    fields: dict[str, Any] = {
        "version": 2,
        "entry_id": f"01930000-0000-7000-8abc-{seq:012x}",
        "customer_id": "acme",
        "seq": seq,
        "kind": "usage",
        "debit_account": "customer_credits",
        "credit_account": "revenue",
        "amount_nanos": 10 * PRICE_NANOS,
        "bonus_nanos": 0,
        "balance_after_nanos": balance - 10 * PRICE_NANOS,
        "usage_day": f"2026-11-{1 + seq % 28:02d}",
        "hold_id": f"01930000-0000-7000-9def-{seq:012x}",
        "key_id": "k1",
        "model": "qwen25-14b-awq",
        "lane": "standard",
        "prompt_tokens": 6,
        "completion_tokens": 4,
        "prompt_price_nanos": PRICE_NANOS,
        "completion_price_nanos": PRICE_NANOS,
        "outcome": "completed",
        "reason": None,
        "actor": None,
        "reference": None,
        "recorded_at": f"2026-11-{1 + seq % 28:02d}T10:00:00.{seq:06d}Z",
    } | changes
    fields["prev_hash"] = prev.hex()
    return fields | {"hash": chain.document_hash(fields, prev).hex()}


def purchase(prev: bytes) -> dict[str, Any]:
    nothing: dict[str, Any] = dict.fromkeys(("usage_day", "hold_id", "key_id", "model", "lane", "outcome"))
    zeros = dict.fromkeys(
        ("prompt_tokens", "completion_tokens", "prompt_price_nanos", "completion_price_nanos"), 0
    )
    told = {"kind": "grant", "debit_account": "stripe_clearing", "credit_account": "customer_credits"}
    amount = {"amount_nanos": 50 * 10**9, "balance_after_nanos": 50 * 10**9}
    return entry(1, prev, 0, **nothing, **zeros, **told, **amount, reason="bundle “Solo”", reference="cs_1")


def make_statement(usages: int = 2) -> Statement:
    """Return the statement of a customer who bought once and used a little, in a log with others' leaves."""
    prev = chain.genesis("acme")
    entries = [purchase(prev)]
    for seq in range(2, usages + 2):
        last = entries[-1]
        entries.append(entry(seq, bytes.fromhex(last["hash"]), last["balance_after_nanos"]))
    totals = Totals(0, 0, 0, prev.hex())
    for made in entries:
        totals.add(made)
    leaves = [bytes.fromhex(made["hash"]) for made in entries] + [merkle.leaf_hash(b"others")] * 3
    before, size = 2, len(leaves)
    notes = [Checkpoint(ORIGIN, at, merkle.root(leaves[:at])).signed([LOG_KEY]) for at in (before, size)]

    def tile(level: int, index: int) -> list[bytes]:
        assert (level, index) == (0, 0)
        return leaves

    def path(nodes: merkle.Path) -> list[str]:
        return [value.hex() for value in merkle.hashes(nodes, tile)]

    place = len(entries) - 1
    told: dict[str, Any] = {
        "statement": {"format": "darktree-statement-v1", "number": "DT-2026-11-acme", "period": "2026-11"},
        "customer": {"id": "acme", "name": "Acme Łtd", "email": None, "plan": "solo"},
        "keys": [],
        "caps": {
            "opening_cap_tokens": 2000,
            "changes": [],
            "days": [],
            "days_at_cap": 0,
            "refused_requests": 0,
        },
        "holds": None,
        "chain": {
            "opening": {"seq": 0, "head": prev.hex()},
            "closing": {"seq": len(entries), "head": entries[-1]["hash"]},
        },
        "proof": {
            "checkpoint": notes[1],
            "entry": {"seq": len(entries), "leaf_index": place, "proof": path(merkle.inclusion(place, size))},
            "earlier": {"checkpoint": notes[0], "consistency": path(merkle.consistency(before, size))},
            "keys": [{"vkey": str(LOG_KEY.verifier), "endorsement": None}],
        },
        "how_to_verify": list(HOW_TO_VERIFY),
    } | totals.sections()
    lines = io.BytesIO(b"".join(orjson.dumps(made) + b"\n" for made in entries))
    return Statement({name: told[name] for name in SECTIONS}, lines, len(entries))


@pytest.fixture(scope="module")
def content() -> bytes:
    return b"".join(json_lines(make_statement(), BOOKS_KEY))


def verified(folder: Path, content: bytes, *keys: Verifier, kept: str | None = None) -> StatementReport:
    file = folder / "statement.json"
    file.write_bytes(content)
    return verify(file, keys, kept)


def test_a_statement_as_it_was_written_is_proven(content: bytes, tmp_path: Path) -> None:
    report = verified(tmp_path, content, LOG_KEY.verifier, BOOKS_KEY.verifier)
    assert report.failures.kept == []
    assert (report.number, report.entries, report.pinned) == ("DT-2026-11-acme", 3, True)
    assert report.signed_by == str(BOOKS_KEY.verifier)
    assert json.loads(content)["totals"]["closing_nanos"] == 50 * 10**9 - 20 * PRICE_NANOS


def test_flipping_any_byte_is_found_and_said_where(content: bytes, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for place in range(len(content)):
        altered = bytearray(content)
        altered[place] ^= 1 << chance.randrange(8)
        line = content.count(b"\n", 0, place) + 1
        try:
            said = [str(failure) for failure in verified(tmp_path, bytes(altered)).failures.kept]
        except Unreadable as error:
            said = [str(error)]
        assert said, f"byte {place}, of line {line}, went unseen: {bytes(altered)[place - 20 : place + 20]!r}"
        must_say_where(said, content, line)


def must_say_where(said: list[str], content: bytes, line: int) -> None:
    """A failure names the altered entry (or its neighbour, when the entry cannot say itself), or the part."""
    written = content.splitlines()[line - 1].decode()
    all_said = "\n".join(said)
    if written.startswith('{"version"'):
        seq = json.loads(written.rstrip(","))["seq"]
        named = (
            f"line {line}: ",
            f"entry {seq} ",
            f"entry {seq + 1} ",
            "the end of the last entry",
            "entries give",
        )
        assert any(name in all_said for name in named), (line, said)
    elif written.startswith('"') and not written.startswith('"entries"'):
        name = written.split('"')[1]
        assert name in all_said, (name, said)
    else:
        assert "line" in all_said or "statement" in all_said, said


@pytest.mark.parametrize("size", [1, 2])
def test_any_truncated_file_is_refused(content: bytes, tmp_path: Path, size: int) -> None:
    for end in range(0, len(content), 97 * size):
        with suppress(Unreadable):
            assert verified(tmp_path, content[:end]).failures.count


def test_an_entry_that_is_altered_with_its_hash_breaks_the_chain_after_it(
    content: bytes, tmp_path: Path
) -> None:
    lines = content.splitlines(keepends=True)
    place = next(number for number, line in enumerate(lines) if b'"seq":2' in line and b'"version"' in line)
    made = json.loads(lines[place].rstrip(b",\n")) | {"lane": "premium"}
    made["hash"] = chain.document_hash(made, bytes.fromhex(made["prev_hash"])).hex()
    lines[place] = orjson.dumps(made) + b",\n"
    said = [str(failure) for failure in verified(tmp_path, b"".join(lines)).failures.kept]
    assert any("customer acme, entry 3 " in what and "prev_hash" in what for what in said), said


@pytest.mark.parametrize("what", ["deleted", "moved", "repeated"])
def test_entries_that_are_deleted_moved_or_repeated_are_named(
    content: bytes, tmp_path: Path, what: str
) -> None:
    lines = content.splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if line.startswith(b'{"version"'))
    match what:
        case "deleted":
            del lines[first + 1]
        case "moved":
            lines[first], lines[first + 1] = lines[first + 1], lines[first]
        case _:
            lines.insert(first + 1, lines[first])
    said = [str(failure) for failure in verified(tmp_path, b"".join(lines)).failures.kept]
    assert any("customer acme, entry " in failure for failure in said) or what == "moved", said
    assert said


def test_a_statement_that_was_signed_again_by_another_key_is_refused(tmp_path: Path) -> None:
    content = b"".join(json_lines(make_statement(), OTHER_KEY))
    said = verified(tmp_path, content, LOG_KEY.verifier, BOOKS_KEY.verifier).failures.kept
    assert [str(failure) for failure in said] == [
        "the signature (integrity): none of the trusted keys has signed this note"
    ]
    assert verified(tmp_path, content).failures.kept == []  # by its own word only, which the report says


def test_a_kept_checkpoint_is_compared(content: bytes, tmp_path: Path) -> None:
    proof = json.loads(content)["proof"]
    for kept in (proof["earlier"]["checkpoint"], proof["checkpoint"]):
        report = verified(tmp_path, content, LOG_KEY.verifier, BOOKS_KEY.verifier, kept=kept)
        assert report.failures.kept == []
        assert report.earlier is not None
    rewritten = Checkpoint(ORIGIN, 2, merkle.root([b"\x01" * 32, b"\x02" * 32])).signed([LOG_KEY])
    said = verified(tmp_path, content, kept=rewritten).failures.kept
    assert "history was rewritten" in str(said[0])
    elsewhere = Checkpoint(ORIGIN, 3, merkle.root([b"\x01" * 32] * 3)).signed([LOG_KEY])
    assert "proves nothing about a log of 3 entries" in str(
        verified(tmp_path, content, kept=elsewhere).failures.kept[0]
    )


def test_what_is_no_statement_is_unreadable(tmp_path: Path) -> None:
    for content in (b"", b"{}", b"%PDF-1.4\n", b'{"a": 1}\n' * 50):
        with pytest.raises(Unreadable):
            verified(tmp_path, content)
    with pytest.raises(Unreadable):
        verify(tmp_path / "absent.json")
