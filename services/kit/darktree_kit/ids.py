"""Ids that sort by time: UUID version 7 (RFC 9562, section 5.7).

Random keys would triple the write-ahead log of the ledger's indexes. The standard library has `uuid7` from 3.14 on.
"""

import os
import uuid

from darktree_kit.clock import unix_milliseconds

REQUEST_ID_PREFIX = "req_"
_RANDOM_BYTES = 10
_IDS_A_READ = (
    400  # so many ids' randomness is read from the system at once: asking costs as much as the rest of an id
)


def uuid7() -> uuid.UUID:
    """Return a new UUIDv7: 48 bits of milliseconds, then 74 random bits."""
    value = (unix_milliseconds() << 80) | _random_number()
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return uuid.UUID(int=value)


def request_id_of(value: uuid.UUID) -> str:
    """Return how a request's id is written outside: `req_` and 32 hexadecimal digits."""
    return REQUEST_ID_PREFIX + value.hex


def parse_request_id(text: str) -> uuid.UUID:
    """Return the UUID inside a request id. Raises ValueError when it is none."""
    if not text.startswith(REQUEST_ID_PREFIX):
        raise ValueError(f"{text!r} is not a request id: it begins with {REQUEST_ID_PREFIX}")
    return uuid.UUID(hex=text.removeprefix(REQUEST_ID_PREFIX))


_random: list[int] = []
os.register_at_fork(after_in_child=_random.clear)  # a forked process must not repeat its parent's numbers


def _random_number() -> int:
    try:
        return _random.pop()
    except IndexError:
        data = os.urandom(_RANDOM_BYTES * _IDS_A_READ)
        places = range(0, len(data), _RANDOM_BYTES)
        first, *rest = (int.from_bytes(data[place : place + _RANDOM_BYTES]) for place in places)
        _random.extend(rest)
        return first
