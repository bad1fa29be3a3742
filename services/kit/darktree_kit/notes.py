"""Signed notes: a text and below it the signatures of those who vouch for it (https://c2sp.org/signed-note).

Keys are written as Go's `sumdb/note` writes them, so that any tool that reads Go's checksum database or a transparency
log reads ours: a verifier key is `<name>+<id>+<base64>`, a signer key `PRIVATE+KEY+<name>+<id>+<base64>`. A signer key
may also be its name on a line and below it the key as PKCS #8 in PEM, which OpenSSL and Helm can make.

    NoteError               a ValueError: whoever brought the text brought it wrong
    ├── MalformedKey
    ├── MalformedNote
    └── UnverifiedNote      no trusted key has signed it, or a trusted key's signature is wrong
"""

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

MAX_NOTE_BYTES = 1_000_000
MAX_SIGNATURES = 100
_ED25519 = b"\x01"
_ID_BYTES = 4
_SIGNER_PREFIX = "PRIVATE+KEY+"
_PEM_PREFIX = "-----BEGIN PRIVATE KEY-----"
_SIGNATURE_LINE = re.compile(r"— (\S+) (\S+)")
_NOT_IN_A_TEXT = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


class NoteError(ValueError):
    """A key or a note cannot be used."""


class MalformedKey(NoteError):
    """A text is no key of ours."""


class MalformedNote(NoteError):
    """A text is no signed note."""


class UnverifiedNote(NoteError):
    """No trusted key has signed the note, or one of them is said to have and did not."""


@dataclass(frozen=True)
class Verifier:
    """Whose signature is trusted. `str()` gives the verifier key."""

    name: str
    public_key: bytes

    @property
    def id(self) -> bytes:
        """The first four bytes of a hash: enough to tell a name's keys apart, and no more than a hint."""
        key = _ED25519 + self.public_key
        return hashlib.sha256(self.name.encode() + b"\n" + key).digest()[:_ID_BYTES]

    def __str__(self) -> str:
        return _key_text(self, _ED25519 + self.public_key)

    def verifies(self, text: bytes, signature: bytes) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(self.public_key).verify(signature, text)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class Signer:
    """Who signs. Its `repr` does not show the seed."""

    name: str
    seed: bytes = field(repr=False)

    @property
    def verifier(self) -> Verifier:
        return Verifier(
            self.name, Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw()
        )

    def text(self) -> str:
        """Return the signer key: a secret."""
        return _SIGNER_PREFIX + _key_text(self.verifier, _ED25519 + self.seed)

    def signature(self, text: bytes) -> bytes:
        return Ed25519PrivateKey.from_private_bytes(self.seed).sign(text)


def make_signer(name: str) -> Signer:
    """Return a new key of this name. Raises MalformedKey when no key can have it."""
    _check_name(name)
    return Signer(name, Ed25519PrivateKey.generate().private_bytes_raw())


def write_signer(signer: Signer, file: Path) -> None:
    """Write a signer key where only this user may read it. Raises FileExistsError: a key is never overwritten."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(signer.text() + "\n")


def parse_signer(text: str) -> Signer:
    """Return the key that a signer key's text says. Raises MalformedKey, which does not repeat the text."""
    text = text.strip()
    name, _, below = text.partition("\n")
    if below.startswith(_PEM_PREFIX):
        return _signer_of_pem(name.strip(), below)
    if not text.startswith(_SIGNER_PREFIX):
        raise MalformedKey(
            f"a signer key begins with {_SIGNER_PREFIX}, or is a name and below it a key in PEM"
        )
    name, id_text, seed = _parts(text.removeprefix(_SIGNER_PREFIX))
    signer = Signer(name, seed)
    if signer.verifier.id.hex() != id_text:
        raise MalformedKey(f"the id of the signer key of {name} does not fit the key")
    return signer


def parse_verifier(text: str) -> Verifier:
    """Return the key that a verifier key's text says. Raises MalformedKey."""
    name, id_text, public_key = _parts(text.strip())
    verifier = Verifier(name, public_key)
    if verifier.id.hex() != id_text:
        raise MalformedKey(f"the id of the verifier key of {name} does not fit the key")
    return verifier


def sign(text: str, signers: Sequence[Signer]) -> str:
    """Return a text, which must end with a line feed, with one signature for each signer below it."""
    content = text.encode()
    if not text.endswith("\n") or _NOT_IN_A_TEXT.search(text):
        raise MalformedNote("a note's text ends with a line feed and has no other control character")
    if not 1 <= len(signers) <= MAX_SIGNATURES:
        raise MalformedNote(f"a note has 1 to {MAX_SIGNATURES} signatures")
    lines = [
        f"— {signer.name} {_base64(signer.verifier.id + signer.signature(content))}\n" for signer in signers
    ]
    return text + "\n" + "".join(lines)


def open_note(note: str, verifiers: Iterable[Verifier]) -> str:
    """Return the text of a note that at least one of the verifiers has signed, and none of them wrongly.

    Signatures of others are passed over. Raises MalformedNote and UnverifiedNote.
    """
    text, signatures = split(note)
    known = {(verifier.name, verifier.id): verifier for verifier in verifiers}
    verified = False
    for name, key_id, signature in signatures:
        verifier = known.get((name, key_id))
        if verifier is None:
            continue
        if not verifier.verifies(text.encode(), signature):
            raise UnverifiedNote(f"the signature of {name}+{key_id.hex()} is wrong")
        verified = True
    if not verified:
        raise UnverifiedNote("none of the trusted keys has signed this note")
    return text


def split(note: str) -> tuple[str, list[tuple[str, bytes, bytes]]]:
    """Return a note's text and its signatures (name, key id, signature), unverified. Raises MalformedNote."""
    if len(note.encode()) > MAX_NOTE_BYTES:
        raise MalformedNote(f"a note has at most {MAX_NOTE_BYTES} bytes")
    if _NOT_IN_A_TEXT.search(note):
        raise MalformedNote("a note has no control character but the line feed")
    text, separator, below = note.rpartition("\n\n")
    if not separator or not below.endswith("\n"):
        raise MalformedNote("a note is a text, an empty line, and lines of signatures")
    lines = below[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise MalformedNote(f"a note has at most {MAX_SIGNATURES} signatures")
    return text + "\n", [_signature(line) for line in lines]


def _signature(line: str) -> tuple[str, bytes, bytes]:
    match = _SIGNATURE_LINE.fullmatch(line)
    if match is None or "+" in match[1]:
        raise MalformedNote("a line of a signature is `— <name> <base64>`")
    try:
        content = base64.b64decode(match[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedNote("a signature is not base64") from error
    if len(content) <= _ID_BYTES or _base64(content) != match[2]:
        raise MalformedNote("a signature is a key's id and what the key made")
    return match[1], content[:_ID_BYTES], content[_ID_BYTES:]


def _parts(text: str) -> tuple[str, str, bytes]:
    name, _, rest = text.partition("+")
    id_text, _, encoded = rest.partition("+")  # base64 has plus signs of its own
    _check_name(name)
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedKey(f"the key of {name} is not base64") from error
    if content[:1] != _ED25519 or len(content) != 33:
        raise MalformedKey(f"the key of {name} is no Ed25519 key")
    return name, id_text, content[1:]


def _signer_of_pem(name: str, pem: str) -> Signer:
    _check_name(name)
    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except (ValueError, UnsupportedAlgorithm):
        key = None  # the error may repeat the text
    if not isinstance(key, Ed25519PrivateKey):
        raise MalformedKey(f"the key of {name} is no Ed25519 key in PEM")
    return Signer(name, key.private_bytes_raw())


def _check_name(name: str) -> None:
    if not name or "+" in name or any(letter.isspace() or not letter.isprintable() for letter in name):
        raise MalformedKey("a key's name is not empty and has neither spaces nor a plus sign")


def _key_text(verifier: Verifier, content: bytes) -> str:
    return f"{verifier.name}+{verifier.id.hex()}+{_base64(content)}"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
