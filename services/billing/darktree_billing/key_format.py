"""What an API key looks like: `dt_live_<id>_<secret><checksum>`, all base62, always 57 characters.

The checksum is the CRC-32 of everything before it, so that a mistyped key is refused without asking anybody
and a secret scanner can tell a real key from noise (GitHub's design). The protection is the 178 random bits.
"""

import hashlib
import re
import secrets
import zlib
from dataclasses import dataclass, field

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PREFIX = "dt_live_"
ID_LENGTH = 12
SECRET_LENGTH = 30
CHECKSUM_LENGTH = 6
LAST_LENGTH = 4
KEY_LENGTH = len(PREFIX) + ID_LENGTH + 1 + SECRET_LENGTH + CHECKSUM_LENGTH

KEY_ID_PATTERN = rf"^[0-9A-Za-z]{{{ID_LENGTH}}}$"
_KEY = re.compile(rf"{PREFIX}([0-9A-Za-z]{{{ID_LENGTH}}})_[0-9A-Za-z]{{{SECRET_LENGTH + CHECKSUM_LENGTH}}}")


@dataclass(frozen=True)
class NewKey:
    """A key that was just made; `text` is the only copy of its secret, and is not printed with the rest."""

    id: str
    text: str = field(repr=False)

    @property
    def last4(self) -> str:
        return self.text[-LAST_LENGTH:]


def make_key() -> NewKey:
    """Return a new random key."""
    key_id = _random_text(ID_LENGTH)
    body = f"{prefix_of(key_id)}_{_random_text(SECRET_LENGTH)}"
    return NewKey(id=key_id, text=body + _checksum(body))


def prefix_of(key_id: str) -> str:
    """Return how a key with this id begins: the part of it that may be shown."""
    return PREFIX + key_id


def key_id_of(key: str) -> str | None:
    """Return the id inside a key, or None when it is malformed or its checksum is wrong."""
    match = _KEY.fullmatch(key)
    if match is None or _checksum(key[:-CHECKSUM_LENGTH]) != key[-CHECKSUM_LENGTH:]:
        return None
    return match[1]


def key_digest(key: str) -> str:
    """Return the SHA-256 of a key, hexadecimal: what travels between services instead of the key."""
    return hashlib.sha256(key.encode()).hexdigest()


def _random_text(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def _checksum(text: str) -> str:
    value = zlib.crc32(text.encode())
    digits = ""
    for _ in range(CHECKSUM_LENGTH):
        value, digit = divmod(value, len(ALPHABET))
        digits = ALPHABET[digit] + digits
    return digits
