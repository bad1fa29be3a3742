"""Checkpoints: the whole log in a few signed lines (https://c2sp.org/tlog-checkpoint), and the keys that sign them.

A checkpoint says how many entries the log has and the root over them. Whoever keeps one can later tell whether anything
before it was rewritten. A log's keys all have the log's origin as their name; each but the first is endorsed by one
before it, so that whoever trusts one key can tell by himself which later ones to trust. Nothing here reads or writes.

A log that lost its end, because its database was restored to an earlier moment, must not go on under its name: there
would be two histories of one origin. It ends, and a log of another origin continues it: the keys of the one that ended
sign a continuation, which says how far the new log is the old one, how long the old one was known to be,
and the new key.
"""

import base64
import binascii
from collections.abc import Iterable, Sequence
from contextlib import suppress
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
CONTINUATION = "darktree.dev/log-continuation/v1"


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


@dataclass(frozen=True)
class Continuation:
    """What the keys of a log that ended say of the log that goes on.

    `ended` is the newest checkpoint of the old log that is known; `common` is how much of it the new one begins with.
    """

    ended: Checkpoint
    common: Checkpoint
    verifier: Verifier

    def text(self) -> str:
        lines = [CONTINUATION, *self.ended.text().splitlines(), *self.common.text().splitlines()[1:]]
        return "\n".join([*lines, str(self.verifier)]) + "\n"


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


def open_continuation(note: str, verifiers: Iterable[Verifier]) -> Continuation:
    """Return a continuation that a key of the log that ended has signed. Raises MalformedNote, UnverifiedNote."""
    lines = split(note)[0].split("\n")
    if len(lines) != 8 or lines[0] != CONTINUATION or lines[-1]:
        raise MalformedNote("a continuation is seven lines: see docs/ledger-format.md")
    origin, size, root, common_size, common_root, vkey = lines[1:-1]
    ended = parse_checkpoint(f"{origin}\n{size}\n{root}\n")
    common = parse_checkpoint(f"{origin}\n{common_size}\n{common_root}\n")
    open_note(note, [verifier for verifier in verifiers if verifier.name == origin])
    return Continuation(ended, common, parse_verifier(vkey))


def continuations(trusted: Iterable[Verifier], published: Iterable[LogKey]) -> list[Continuation]:
    """Return every continuation among the published keys that a trusted key has signed, oldest first."""
    keys, found = list(trusted), []
    for key in published:
        with suppress(NoteError):
            found.append(open_continuation(key.endorsement or "", keys))
    return found


def _endorsed(verifier: Verifier, note: str | None, by: list[Verifier]) -> bool:
    try:
        text = open_note(note or "", by)
        if text.startswith(CONTINUATION):
            return open_continuation(note or "", by).verifier == verifier
        open_note(note or "", [known for known in by if known.name == verifier.name])
    except NoteError:
        return False
    return text == _rotation(verifier)


def _rotation(verifier: Verifier) -> str:
    return f"{ROTATION}\n{verifier.name}\n{verifier}\n"
