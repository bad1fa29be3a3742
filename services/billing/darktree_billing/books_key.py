"""The key that signs what leaves the books: statements and close packs.

It is another key than the log's: whoever may write a statement need not be able to sign a checkpoint.
"""

from pathlib import Path

from darktree_kit.errors import Unavailable
from darktree_kit.notes import NoteError, Signer, parse_signer

MAX_FILE_BYTES = 10_000


class BooksKeyError(ValueError):
    """The file of the books' key cannot be used; the message says why."""


def load_books_key(path: Path | None) -> Signer | None:
    """Return the key in a file, or None when no file is named. Raises BooksKeyError."""
    if path is None:
        return None
    try:
        with path.open() as file:
            return parse_signer(file.read(MAX_FILE_BYTES))
    except OSError as error:
        raise BooksKeyError(f"{path}: {error.strerror}; set DARKTREE_BILLING_BOOKS_KEY_FILE") from error
    except NoteError as error:
        raise BooksKeyError(f"{path}: {error}") from error


def required(signer: Signer | None) -> Signer:
    """Return the key. Raises Unavailable when this service has none."""
    if signer is None:
        raise Unavailable(
            "Billing has no key to sign the books with: set DARKTREE_BILLING_BOOKS_KEY_FILE.",
            code="no_books_key",
        )
    return signer
