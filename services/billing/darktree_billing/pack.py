"""A close pack: files, a manifest with the hash of each, and the books' signature under the manifest's hash.

`manifest.note` is a signed note (https://c2sp.org/signed-note) of three lines: the format, the month, and the SHA-256
of `manifest.json`. Whoever trusts the key can check a pack years later, with no access to anything of ours.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from darktree_kit.notes import NoteError, Signer, Verifier, open_note, parse_verifier, sign

FORMAT = "darktree-close-v1"
MANIFEST, NOTE = "manifest.json", "manifest.note"
PREVIEW = "PREVIEW-"
MAX_FILES = 100
MAX_FILE_BYTES = 100_000_000
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can say: the bytes must not tell when they were made


class PackError(ValueError):
    """A pack is not what was signed; the message names the file."""


@dataclass(frozen=True)
class Verified:
    """What a pack that verifies says."""

    month: str
    signed_by: str
    is_key_trusted: bool
    files: int
    manifest_sha256: str


def make_manifest(month: str, files: Mapping[str, bytes], signer: Signer | None, **facts: Any) -> bytes:
    """Return the manifest of files. `facts` is what else it says."""
    document = {
        "format": FORMAT,
        "month": month,
        "status": "closed" if signer else "preview",
        "signed_by": str(signer.verifier) if signer else None,
        **facts,
        "files": {
            name: {"bytes": len(content), "sha256": sha256(content)}
            for name, content in sorted(files.items())
        },
    }
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def make_pack(month: str, files: Mapping[str, bytes], manifest: bytes, signer: Signer | None) -> bytes:
    """Return the zip: the same bytes for the same files. Without a signer it is a preview, and every name says so."""
    packed = {**files, MANIFEST: manifest}
    if signer is not None:
        packed[NOTE] = sign(f"{FORMAT}\n{month}\n{sha256(manifest)}\n", [signer]).encode()
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(packed.items()):
            entry = zipfile.ZipInfo(name if signer else PREVIEW + name, EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return written.getvalue()


def read_pack(path: Path) -> dict[str, bytes]:
    """Return the files of a pack: a zip, or the folder into which one was unpacked. Raises PackError."""
    try:
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.is_file())
            _bound(len(found), sum(file.stat().st_size for file in found))
            return {file.name: file.read_bytes() for file in found}
        return unpack(path.read_bytes())
    except OSError as error:
        raise PackError(f"{path}: {error.strerror}") from error


def unpack(content: bytes) -> dict[str, bytes]:
    """Return the files of a zip. Raises PackError."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            _bound(len(entries), sum(entry.file_size for entry in entries))
            if any(not entry.filename or {"/", "\\"} & set(entry.filename) for entry in entries):
                raise PackError("a pack has no folders inside")
            return {entry.filename: archive.read(entry) for entry in entries}
    except PackError:
        raise
    except Exception as error:  # a damaged zip raises errors of five libraries
        raise PackError(f"this zip is damaged: {error}") from error


def verify_pack(files: Mapping[str, bytes], trusted: Sequence[Verifier] = ()) -> Verified:
    """Check every file against the manifest, and the manifest against its signature. Raises PackError.

    Without a trusted key the one that the manifest names is used: then the pack is whole, but anybody may have made it.
    """
    if any(name.startswith(PREVIEW) for name in files):
        raise PackError("this is a preview: nobody has signed it, and it may change")
    for name in (MANIFEST, NOTE):
        if name not in files:
            raise PackError(f"{name} is missing")
    manifest = files[MANIFEST]
    try:
        document = json.loads(manifest)
        month, listed = str(document["month"]), dict(document["files"])
        own = parse_verifier(document["signed_by"])
        text = open_note(files[NOTE].decode(), trusted or [own])
    except NoteError as error:
        raise PackError(f"{NOTE}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PackError(f"{MANIFEST} cannot be read: {error}") from error
    if text != f"{FORMAT}\n{month}\n{sha256(manifest)}\n":
        raise PackError(f"{MANIFEST} is not the one that was signed")
    for name in sorted(listed.keys() | files.keys() - {MANIFEST, NOTE}):
        if name not in files:
            raise PackError(f"{name} is missing")
        if name not in listed:
            raise PackError(f"{name} does not belong to this pack")
        if sha256(files[name]) != listed[name]["sha256"]:
            raise PackError(f"{name} was changed after it was signed")
    return Verified(month, str(own), bool(trusted), len(listed), sha256(manifest))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _bound(files: int, total_bytes: int) -> None:
    if files > MAX_FILES or total_bytes > MAX_FILE_BYTES:
        raise PackError(f"a pack has at most {MAX_FILES} files and {MAX_FILE_BYTES} bytes")
