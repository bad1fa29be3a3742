"""Checkpoints: the whole log in a few signed lines (https://c2sp.org/tlog-checkpoint), and the keys that sign them.

A checkpoint says how many entries the log has and the root over them. Whoever keeps one can later tell whether anything
before it was rewritten. A log's keys all have the log's origin as their name; each but the first is endorsed by one
before it, so that whoever trusts one key can tell by himself which later ones to trust. Nothing here reads or writes.
"""

import base64
import binascii
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from darktree_kit.notes import (
    MalformedNote,
    NoteError,
    Signer,
    Verifier,
    open_note,
    parse_verifier,
    sign,
    split,
)
from darktree_ledger.merkle import HASH_BYTES, MAX_SIZE

ROTATION = "darktree.dev/key-rotation/v1"


@dataclass(frozen=True)
class Checkpoint:
    """A log's origin, how many entries it has, and the root over them."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    def signed(self, signers: Sequence[Signer]) -> str:
        """Return the checkpoint as a note with all these signatures."""
        return sign(self.text(), signers)


class LogKey(Protocol):
    """A key as the log publishes it."""

    vkey: str
    endorsement: str | None


def parse_checkpoint(text: str) -> Checkpoint:
    """Return what a checkpoint's text says. Lines after the third are extensions and passed over.

    Raises MalformedNote.
    """
    lines = text.split("\n")
    if len(lines) < 4 or lines[-1] or not all(lines[:-1]):
        raise MalformedNote("a checkpoint is an origin, a size and a root, each on a line")
    origin, size, root_text = lines[:3]
    if not (size.isascii() and size.isdigit() and str(int(size[:19])) == size and int(size) <= MAX_SIZE):
        raise MalformedNote("a checkpoint's size is a decimal number")
    try:
        root = base64.b64decode(root_text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedNote("a checkpoint's root is not base64") from error
    if len(root) != HASH_BYTES or base64.b64encode(root).decode() != root_text:
        raise MalformedNote("a checkpoint's root is a SHA-256")
    return Checkpoint(origin, int(size), root)


def open_checkpoint(note: str, verifiers: Iterable[Verifier]) -> Checkpoint:
    """Return a checkpoint that one of these keys has signed for its own log. Raises MalformedNote, UnverifiedNote."""
    checkpoint = parse_checkpoint(split(note)[0])
    open_note(note, [verifier for verifier in verifiers if verifier.name == checkpoint.origin])
    return checkpoint


def endorse(verifier: Verifier, signer: Signer) -> str:
    """Return the note by which one key of a log vouches for the next."""
    return sign(_rotation(verifier), [signer])


def trusted_keys(trusted: Iterable[Verifier], published: Iterable[LogKey]) -> list[Verifier]:
    """Return the trusted keys and every published one that they endorse, directly or through others."""
    found = list(trusted)
    waiting = [(parse_verifier(key.vkey), key.endorsement) for key in published if key.endorsement]
    while True:
        new = [
            verifier
            for verifier, note in waiting
            if verifier not in found and _endorsed(verifier, note, found)
        ]
        if not new:
            return found
        found += new


def _endorsed(verifier: Verifier, note: str | None, by: list[Verifier]) -> bool:
    try:
        text = open_note(note or "", [known for known in by if known.name == verifier.name])
    except NoteError:
        return False
    return text == _rotation(verifier)


def _rotation(verifier: Verifier) -> str:
    return f"{ROTATION}\n{verifier.name}\n{verifier}\n"
