"""A statement's JSON verified offline: from the file alone, by keys that its reader trusts.

Every entry's hash and the chain from the opening to the closing are recomputed, every total is folded again from the
entries, the newest entry is shown to be in the signed log, and the file's own hash and signature cover every byte.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from darktree_billing.statement_json import (
    BEGIN,
    END,
    ENTRIES_BEGIN,
    ENTRIES_END,
    FORMAT,
    INTEGRITY,
    SECTIONS,
    note_text,
    parsed_part,
)
from darktree_billing.statement_totals import Totals
from darktree_kit.notes import NoteError, Verifier, open_note, parse_verifier
from darktree_ledger.checkpoints import Checkpoint, open_checkpoint, trusted_keys
from darktree_ledger.export_file import PARALLEL_FROM_BYTES, Progress, Unreadable
from darktree_ledger.merkle import verify_consistency, verify_inclusion
from darktree_ledger.verification import (
    Chains,
    Failure,
    Failures,
    Span,
    Standing,
    checked_spans,
    lines_of,
    spans_of,
)

MAX_TAIL_BYTES = 100_000  # of the last lines, which hold a few hashes and a note


@dataclass
class _Key:
    vkey: str
    endorsement: str | None


@dataclass
class StatementReport:
    """What came out of a verification. `pinned`: the keys were the reader's own, and not the file's word."""

    number: str = ""
    customer_id: str = ""
    entries: int = 0
    checkpoint: Checkpoint | None = None
    earlier: Checkpoint | None = None
    signed_by: str | None = None
    log_keys: list[str] = field(default_factory=list)
    pinned: bool = False
    failures: Failures = field(default_factory=Failures)


def verify(
    path: Path, keys: Sequence[Verifier] = (), kept: str | None = None, progress: Progress | None = None
) -> StatementReport:
    """Verify a statement. `keys` are trusted, of the log and of the books; without any, those in the file.

    `kept` is a checkpoint of the log that the reader kept. Raises Unreadable when this is no statement at all.
    """
    try:
        return _Verification(path, keys, kept, progress).run()
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error


class _Verification:
    def __init__(
        self, path: Path, keys: Sequence[Verifier], kept: str | None, progress: Progress | None
    ) -> None:
        self._path, self._keys, self._kept, self._progress = path, keys, kept, progress
        self._sha256 = hashlib.sha256()
        self._parts: dict[str, Any] = {}
        self._hashes: dict[str, str] = {}
        self._totals: Totals | None = None
        self.report = StatementReport(pinned=bool(keys))

    def run(self) -> StatementReport:
        start = self._read_parts()
        tail = self._read_tail()
        if start is None or tail is None:
            return self.report
        integrity, end = tail
        try:
            self._check_entries(start, end)
            self._check_totals()
            self._check_proof()
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            self._fail(f"a part of the statement has not the form that it must have: {error!r}")
        self._check_integrity(integrity, start, end)
        return self.report

    def _fail(self, what: str) -> None:
        self.report.failures.add(Failure(what))

    def _read_parts(self) -> int | None:
        """Read the lines before the entries; return where they end, or None when they cannot be read."""
        with self._path.open("rb") as file:
            first = file.readline()
            if first != BEGIN:
                if FORMAT.encode() in file.read(MAX_TAIL_BYTES):
                    self._fail("line 1 is not as it was written")
                    return None
                raise Unreadable(f"{self._path} is not the JSON of a statement")
            self._sha256.update(first)
            for number, name in enumerate(SECTIONS, 2):
                line = file.readline()
                self._sha256.update(line)
                try:
                    self._parts[name], self._hashes[name] = parsed_part(name, line, b",\n")
                except ValueError as error:
                    self._fail(f"line {number}, the part {name}: {error}")
                    return None
            line = file.readline()
            self._sha256.update(line)
            if line != ENTRIES_BEGIN:
                self._fail("the line before the first entry is not as it was written")
                return None
            return file.tell()

    def _read_tail(self) -> tuple[dict[str, Any], int] | None:
        """Read the lines after the entries; return `integrity`, and where the entries end."""
        with self._path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - MAX_TAIL_BYTES))
            lines = file.read().splitlines(keepends=True)
        if len(lines) < 3 or lines[-1] != END:
            self._fail(
                f"the last line, after {INTEGRITY}, is not as it was written: the file was altered or cut off"
            )
            return None
        if lines[-3] != ENTRIES_END:
            self._fail(
                f"the end of the last entry, or of the lines after it ({INTEGRITY}), is not as it was written"
            )
            return None
        try:
            integrity, _ = parsed_part(INTEGRITY, lines[-2], b"\n")
            fields = {"sha256": str, "parts": dict, "note": str, "key": str}
            if integrity.keys() != fields.keys() or not all(
                isinstance(integrity[name], fields[name]) for name in fields
            ):
                raise ValueError("its fields are not as they were written")
        except (ValueError, AttributeError) as error:
            self._fail(f"the part {INTEGRITY}: {error}")
            return None
        return integrity, size - sum(map(len, lines[-3:]))

    def _check_entries(self, start: int, end: int) -> None:
        report, parts = self.report, self._parts
        report.number, report.customer_id = parts["statement"]["number"], parts["customer"]["id"]
        chain, totals = parts["chain"], parts["totals"]
        opening = Standing(
            chain["opening"]["seq"],
            chain["opening"]["head"],
            totals["opening_nanos"],
            totals["opening_bonus_nanos"],
        )
        self._totals = Totals(opening.balance_nanos, opening.bonus_nanos, opening.seq, opening.head or "")
        chains = Chains(report.failures, {report.customer_id: opening})
        parallel = end - start > PARALLEL_FROM_BYTES
        for checked in checked_spans(self._path, self._spans(start, end), parallel=parallel):
            report.failures.add(*checked.failures)
            report.entries += len(checked.leaves)
            for run in checked.runs:
                chains.link(run)
        chains.finish()
        for customer_id in chains.standings.keys() - {report.customer_id}:
            self._fail(
                f"an entry is of the customer {customer_id}, and the statement of {report.customer_id}"
            )
        standing = chains.standings[report.customer_id]
        for name, found in (("seq", standing.seq), ("head", standing.head)):
            if found != chain["closing"][name]:
                self._fail(
                    f"chain.closing.{name} is {chain['closing'][name]}, and the last entry's is {found}"
                )

    def _spans(self, start: int, end: int) -> Iterator[Span]:
        """Say where the entries' lines are; on the way take their SHA-256, and add them up."""
        assert self._totals is not None
        with self._path.open("rb") as file:
            for span in spans_of(self._path, start, end, len(SECTIONS) + 3, self._sha256.update):
                yield span
                for line in lines_of(file, span):
                    with suppress(KeyError, TypeError, ValueError):  # that is told of by who checks the lines
                        self._totals.add(orjson.loads(line.rstrip(b",\n")))
                if self._progress is not None:
                    self._progress(span.offset + span.length, end)

    def _check_totals(self) -> None:
        assert self._totals is not None
        for name, expected in self._totals.sections().items():
            told = self._parts[name]
            if told != expected:
                self._fail(
                    f"the part {name} is not what the entries give: {_difference(name, told, expected)}"
                )
        caps = self._parts["caps"]
        for name in ("refused_requests", "days_at_cap"):
            each = {"refused_requests": "refused_requests", "days_at_cap": "at_cap"}[name]
            if caps[name] != sum(day[each] for day in caps["days"]):
                self._fail(f"caps.{name} is not the sum of the days")

    def _check_proof(self) -> None:
        proof, report = self._parts["proof"], self.report
        if proof is None:
            return
        published = [_Key(key["vkey"], key["endorsement"]) for key in proof["keys"]]
        verifiers = trusted_keys(self._keys or [parse_verifier(key.vkey) for key in published], published)
        try:
            report.checkpoint = checkpoint = open_checkpoint(proof["checkpoint"], verifiers)
        except NoteError as error:
            self._fail(f"proof.checkpoint: {error}")
            return
        report.log_keys = [str(verifier) for verifier in verifiers if verifier.name == checkpoint.origin]
        entry, closing = proof["entry"], self._parts["chain"]["closing"]
        if entry is None:
            if closing["seq"]:
                self._fail("proof.entry: the newest entry is not proven to be in the log")
        else:
            path = [bytes.fromhex(value) for value in entry["proof"]]
            leaf = bytes.fromhex(closing["head"])
            is_in = verify_inclusion(leaf, entry["leaf_index"], checkpoint.size, path, checkpoint.root)
            if entry["seq"] != closing["seq"] or not is_in:
                what = "is not proven to be in the log of the checkpoint"
                report.failures.add(Failure(what, report.customer_id, closing["seq"]))
        self._check_earlier(proof, checkpoint, verifiers)

    def _check_earlier(
        self, proof: dict[str, Any], checkpoint: Checkpoint, verifiers: list[Verifier]
    ) -> None:
        known = {checkpoint.size: checkpoint.root}
        if (earlier := proof["earlier"]) is not None:
            try:
                before = open_checkpoint(earlier["checkpoint"], verifiers)
            except NoteError as error:
                self._fail(f"proof.earlier.checkpoint: {error}")
                return
            path = [bytes.fromhex(value) for value in earlier["consistency"]]
            if verify_consistency(before.size, checkpoint.size, path, before.root, checkpoint.root):
                known[before.size] = before.root
            else:
                self._fail(
                    "proof.earlier: the log is not proven to continue the checkpoint of the month before"
                )
        if self._kept is None:
            return
        try:
            kept = open_checkpoint(self._kept, verifiers)
        except NoteError as error:
            self._fail(f"the checkpoint that you kept: {error}")
            return
        if kept.size in known and known[kept.size] != kept.root:
            self._fail(f"the log of {kept.size} entries is another than you kept: history was rewritten")
        elif kept.size not in known:
            sizes = " or ".join(map(str, sorted(known)))
            self._fail(
                f"the statement proves nothing about a log of {kept.size} entries, only of {sizes}: compare that "
                "checkpoint with `darktree ledger verify`"
            )
        else:
            self.report.earlier = kept

    def _check_integrity(self, integrity: dict[str, Any], start: int, end: int) -> None:
        report = self.report
        self._sha256.update(ENTRIES_END)
        whole = self._sha256.hexdigest()
        for name, found in self._hashes.items():
            if integrity["parts"].get(name) != found:
                altered = f"the part {name}" if integrity["sha256"] != whole else f"{INTEGRITY}.parts.{name}"
                self._fail(f"{altered} was altered: its SHA-256 differs")
        if integrity["parts"].keys() != self._hashes.keys():
            self._fail(f"{INTEGRITY}.parts was altered: it names other parts than the file has")
        if integrity["sha256"] != whole:
            if not any(failure.seq is not None for failure in report.failures.kept):
                self._find_altered_line(start, end)
            if not report.failures.count:
                self._fail(f"{INTEGRITY}.sha256 was altered: it is not that of the file")
        try:
            verifier = parse_verifier(integrity["key"])
            if str(verifier) != integrity["key"]:
                raise NoteError("the key is not as it was written")
            trusted = self._keys or [verifier]
            if open_note(integrity["note"], trusted) != note_text(report.number, integrity["sha256"]):
                raise NoteError("the signature is of another statement, or of other bytes")
            if verifier not in trusted:
                raise NoteError(f"{integrity['key']} is none of the keys that you trust")
            report.signed_by = str(verifier)
        except NoteError as error:
            self._fail(f"the signature ({INTEGRITY}): {error}")

    def _find_altered_line(self, start: int, end: int) -> None:
        """Name the entry whose line says the same in other bytes than it was written in."""
        with self._path.open("rb") as file:
            file.seek(start)
            for number in range(len(SECTIONS) + 3, 2**63):
                line = file.readline()
                if file.tell() > end or not line:
                    return
                comma = b"," if file.tell() < end else b""
                with suppress(
                    KeyError, TypeError, ValueError, AttributeError
                ):  # what cannot be read is told of already
                    entry = orjson.loads(line.rstrip(b",\n"))
                    if line != orjson.dumps(_as_written(entry)) + comma + b"\n":
                        where = (entry["customer_id"], entry["seq"], entry["entry_id"], number)
                        self.report.failures.add(Failure("is not written as it was", *where))


def _as_written(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry with its ids and hashes in small letters, and its instant as the ledger writes it."""
    lower = {
        name: value.lower() for name in ("entry_id", "hold_id", "prev_hash", "hash") if (value := entry[name])
    }
    at = entry["recorded_at"]
    return entry | lower | {"recorded_at": at[:10] + "T" + at[11:19] + "." + at[20:26] + "Z"}


def _difference(place: str, told: Any, expected: Any) -> str:
    """Return where two values first differ, and how."""
    if isinstance(told, dict) and isinstance(expected, dict):
        for name in expected:
            if told.get(name) != expected[name]:
                return _difference(f"{place}.{name}", told.get(name), expected[name])
    if isinstance(told, list) and isinstance(expected, list):
        for number, (one, other) in enumerate(zip(told, expected, strict=False)):
            if one != other:
                return _difference(f"{place}[{number}]", one, other)
        return f"{place} has {len(told)} rows, not {len(expected)}"
    return f"{place} is {told}, not {expected}"
