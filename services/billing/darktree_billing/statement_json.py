"""A statement as JSON: one part a line, then every entry, then what makes each byte of it count.

The last part, `integrity`, has the SHA-256 of everything before it and of each part, and a signed note of that hash by
the books' key. So a verifier can say of any altered byte in which part or entry it is.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import orjson

from darktree_kit.notes import Signer, sign

FORMAT = "darktree-statement-v1"
SECTIONS = (
    "statement", "customer", "totals", "usage_by_day", "usage_by_model", "usage_by_key", "usage", "absorbed",
    "activity", "keys", "caps", "holds", "chain", "proof", "how_to_verify",
)  # fmt: skip
HOW_TO_VERIFY = (
    "Save this statement's JSON and run: darktree statement verify FILE. It needs no database and no network.",
    "It recomputes every entry's hash and the customer's chain, all totals from the entries, the newest entry's place "
    "in the signed log, and the signature. Give --key with keys that you trust, and --checkpoint with one you kept.",
    "It proves that the history up to the checkpoint was not rewritten after it was signed. It does not prove that a "
    "token count was right when it was recorded. Names, plan, refusals and caps are signed, but not in the log.",
)
NOTE_FORMAT = "darktree.dev/statement/v1"
BEGIN, ENTRIES_BEGIN, ENTRIES_END, END = b"{\n", b'"entries": [\n', b"],\n", b"}\n"
INTEGRITY = "integrity"


@dataclass
class Statement:
    """A statement's parts in order, and beside them its entries, one JSON document a line."""

    sections: dict[str, Any]
    entries: IO[bytes]
    count: int

    @property
    def number(self) -> str:
        return str(self.sections["statement"]["number"])


def json_lines(statement: Statement, signer: Signer) -> Iterator[bytes]:
    """Tell a statement's JSON document line by line."""
    whole, parts = hashlib.sha256(), {}
    lines = [BEGIN]
    for name, part in statement.sections.items():
        content = orjson.dumps(part)
        parts[name] = hashlib.sha256(content).hexdigest()
        lines.append(part_line(name, content) + b",\n")
    for line in [*lines, ENTRIES_BEGIN]:
        whole.update(line)
        yield line
    statement.entries.seek(0)
    for place, entry in enumerate(statement.entries, 1):
        line = entry if place == statement.count else entry[:-1] + b",\n"
        whole.update(line)
        yield line
    whole.update(ENTRIES_END)
    yield ENTRIES_END
    note = sign(note_text(statement.number, whole.hexdigest()), [signer])
    integrity = {"sha256": whole.hexdigest(), "parts": parts, "note": note, "key": str(signer.verifier)}
    yield part_line(INTEGRITY, orjson.dumps(integrity)) + b"\n"
    yield END


def sha256_of(statement: Statement, signer: Signer) -> str:
    """Return the SHA-256 of the whole JSON document: what the CSV and the PDF point to."""
    whole = hashlib.sha256()
    for line in json_lines(statement, signer):
        whole.update(line)
    return whole.hexdigest()


def part_line(name: str, content: bytes) -> bytes:
    return b'"%s": %s' % (name.encode(), content)


def note_text(number: str, sha256: str) -> str:
    """Return what the books' key signs: the format, the statement's number, and the hash of all before `integrity`."""
    return f"{NOTE_FORMAT}\n{number}\n{sha256}\n"


def parsed_part(name: str, line: bytes, end: bytes) -> tuple[Any, str]:
    """Return a part and its SHA-256 from its line. Raises ValueError where a byte is not as it was written."""
    begin = part_line(name, b"")
    if not line.startswith(begin) or not line.endswith(end):
        raise ValueError(f"the line does not begin with {begin.decode()} and end as it should")
    content = line[len(begin) : -len(end)]
    part = orjson.loads(content)
    if orjson.dumps(part) != content:
        raise ValueError("it is not written as it was")
    return part, hashlib.sha256(content).hexdigest()
